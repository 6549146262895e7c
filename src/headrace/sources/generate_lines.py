"""Generated events as NDJSON text, by columns. Texts in generated events need no escapes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model import Rows

_DECIMALS = tuple(f".{i:03d}".rstrip("0") if i else ".0" for i in range(1000))


def texts(rows: Rows) -> pa.Array:
    """Each event as a line of JSON with its line end. Numbers have at most three decimals, times milliseconds."""
    payload = rows.column("payload")
    fields = list(payload.type)
    type_ = pc.dictionary_encode(rows.column("event_type"))
    parts = [
        pa.scalar('{"sourceId":"', pa.string()),
        rows.column("source_id"),
        *_stamps(
            np.asarray(pc.cast(rows.column("timestamp"), pa.int64())),
            type_,
            f'","payload":{{"{fields[0].name}":',
        ),
    ]
    columns = payload.flatten()
    for i, values in enumerate(columns):
        after = f',"{fields[i + 1].name}":' if i + 1 < len(fields) else "}}\n"
        parts += _value(values, after)
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.string()))


def joined(lines: pa.Array) -> bytes:
    """The texts one after the other: that is how Arrow keeps them."""
    _, offsets, data = lines.buffers()
    bounds = np.frombuffer(offsets, np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return bytes(data.slice(int(bounds[0]), int(bounds[-1] - bounds[0])).to_pybytes()) if len(lines) else b""


def _value(values: pa.Array, after: str) -> list[pa.Array]:
    if pa.types.is_floating(values.type):
        return _number(values.to_numpy(zero_copy_only=False), after)
    if pa.types.is_string(values.type):
        quote = pa.scalar('"', pa.string())
        return [quote, values, quote, pa.scalar(after, pa.string())]
    return [
        pc.fill_null(pc.cast(values, pa.string()), pa.scalar("null", pa.string())),
        pa.scalar(after, pa.string()),
    ]


def _number(values: npt.NDArray[np.float64], after: str) -> list[pa.Array]:
    """Whole part and decimals apart: both are small sets or integers, which become text much faster than doubles do."""
    absent = np.isnan(values)
    thousandths = np.rint(np.abs(np.where(absent, 0, values)) * 1000).astype(np.int64)
    whole, part = np.divmod(thousandths, 1000)
    decimals = _table(after).take(pa.array(np.where(absent, 1000, part)))
    negative = values < 0
    texts = pc.cast(pa.array(whole, pa.int64()), pa.string())
    if negative.any():
        signs = pa.array(["", "-"], pa.string()).take(pa.array(negative.astype(np.int8)))
        texts = pc.binary_join_element_wise(signs, texts, pa.scalar("", pa.string()))
    if absent.any():
        texts = pc.if_else(pa.array(absent), pa.scalar("null", pa.string()), texts)
    return [texts, decimals]


@lru_cache(maxsize=64)
def _table(after: str) -> pa.Array:
    return pa.array([*(decimals + after for decimals in _DECIMALS), after], pa.string())


def _stamps(times_us: npt.NDArray[np.int64], types: pa.DictionaryArray, after: str) -> list[pa.Array]:
    """Time and type as two texts: up to the second, of which there are few in a block, and the rest."""
    seconds, millis = np.divmod(times_us // 1000, 1000)
    distinct, which = np.unique(seconds, return_inverse=True)
    starts = pa.array(
        [datetime.fromtimestamp(int(s), UTC).strftime('","timestamp":"%Y-%m-%dT%H:%M:%S') for s in distinct],
        pa.string(),
    )
    rest = _rest(tuple(types.dictionary.to_pylist()), after)
    return [starts.take(pa.array(which)), rest.take(pa.array(np.asarray(types.indices) * 1000 + millis))]


@lru_cache(maxsize=64)
def _rest(types: Sequence[str], after: str) -> pa.Array:
    return pa.array(
        [f'.{i:03d}Z","type":"{type_}{after}' for type_ in types for i in range(1000)], pa.string()
    )
