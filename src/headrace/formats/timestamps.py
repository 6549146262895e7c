"""Event times as people and machines send them, to microseconds since 1970 UTC.

`one` reads a single value; `column` reads many and gives the same for each, or marks it for `one` to judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.faults import Refused
from headrace.model import TIMESTAMP

LAST_US = 9_223_372_036_854_775  # 2262-04-11, where nanosecond clocks end: what other tools can still hold
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIGITS = re.compile(r"\d{9,19}(\.\d+)?")
_PART = 64
_NAIVE = pa.timestamp("us")


def one(value: object) -> int:
    """Microseconds of an ISO 8601 text (without a zone: UTC) or of an epoch number in s, ms, us or ns by magnitude.

    Raises Refused with `bad_timestamp`.
    """
    if type(value) is str:
        us = _from_text(value)
    elif type(value) is int or type(value) is float:
        us = _from_number(value)
    else:
        raise Refused("bad_timestamp", f"a time is a text or a number, not {_short(value)}")
    if us is None:
        raise Refused("bad_timestamp", f"{_short(value)} is not a time; send ISO 8601 or an epoch number")
    if not 0 <= us <= LAST_US:
        raise Refused("bad_timestamp", f"{_short(value)} is not between 1970 and 2262")
    return us


def column(values: Sequence[str] | Sequence[int] | Sequence[float]) -> npt.NDArray[np.int64]:
    """Microseconds of many values of one type; -1 where `one` has to decide."""
    if isinstance(values[0], str):
        return _from_texts(pa.array(values, pa.string()))
    if isinstance(values[0], int):
        try:
            return _from_integers(np.array(values, np.int64))
        except OverflowError:
            return np.full(len(values), -1, np.int64)
    return _from_floats(np.array(values, np.float64))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_text(text: str) -> int | None:
    if _DIGITS.fullmatch(text):
        return _from_number(float(text) if "." in text else int(text))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
        return (found - _EPOCH) // _MICROSECOND
    try:
        parsed = _cast(pa.array([text], pa.string()))
    except (UnicodeEncodeError, pa.ArrowInvalid):
        return None
    return None if parsed is None else int(parsed[0])


def _from_number(number: float) -> int | None:
    size = abs(number)
    if isinstance(number, int):
        if size >= 2**63:
            return None
        if size < 100_000_000_000:
            return number * 1_000_000
        if size < 100_000_000_000_000:
            return number * 1_000
        return number if size < 100_000_000_000_000_000 else number // 1_000
    if not size < 1e19:  # NaN too
        return None
    if size < 1e11:
        return round(number * 1e6)
    if size < 1e14:
        return round(number * 1e3)
    return round(number) if size < 1e17 else round(number / 1e3)


def _cast(
    texts: pa.Array, types: Sequence[pa.DataType] = (TIMESTAMP, _NAIVE)
) -> npt.NDArray[np.int64] | None:
    for type_ in types:
        try:
            us: npt.NDArray[np.int64] = pc.cast(texts, type_).view(pa.int64()).to_numpy(zero_copy_only=False)
            return us
        except pa.ArrowInvalid:
            continue
    return None


def _from_texts(texts: pa.Array) -> npt.NDArray[np.int64]:
    # By the first text alone: pyarrow takes long to find out that texts have a zone and shouldn't.
    clock = texts[0].as_py()[10:]
    zoned = clock[-1:] == "Z" or "+" in clock or "-" in clock
    parsed = _cast(texts, (TIMESTAMP,) if zoned else (_NAIVE,))
    if parsed is not None:
        return _within(parsed)
    # Arrow gives up on a whole column for one text that it can't read: in parts, and one by one in those with such a text.
    if len(texts) > _PART:
        parts = [_from_texts(texts.slice(start, _PART)) for start in range(0, len(texts), _PART)]
        return np.concatenate(parts)
    out = np.full(len(texts), -1, np.int64)
    for i, text in enumerate(texts.to_pylist()):
        us = _from_text(text)
        if us is not None and 0 <= us <= LAST_US:
            out[i] = us
    return out


def _from_integers(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    size = np.abs(numbers)  # of -2**63 negative, and so refused below
    us = np.select(
        [size < 100_000_000_000, size < 100_000_000_000_000, size < 100_000_000_000_000_000],
        [numbers * 1_000_000, numbers * 1_000, numbers],
        numbers // 1_000,
    )
    return np.where(numbers >= 0, _within(us), -1)


def _from_floats(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    with np.errstate(all="ignore"):
        us = np.rint(
            np.select(
                [numbers < 1e11, numbers < 1e14, numbers < 1e17],
                [numbers * 1e6, numbers * 1e3, numbers],
                numbers / 1e3,
            )
        )
        good = (numbers >= 0) & (us <= LAST_US)
        return np.where(good, us, -1).astype(np.int64)


def _within(us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if us.min(initial=0) >= 0 and us.max(initial=0) <= LAST_US:
        return us
    return np.where((us >= 0) & (us <= LAST_US), us, -1)
