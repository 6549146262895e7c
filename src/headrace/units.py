"""Durations and sizes as people write them: `10s`, `500ms`, `1h30m`, `64MiB`.

Both are values that carry their unit in the type, so no option needs `_seconds` or `_bytes` in its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_BYTES = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d|w)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A length of time in whole microseconds, never negative."""

    us: int

    @classmethod
    def parse(cls, text: str | int | float | Duration) -> Duration:
        """`"10s"`, `"1h30m"`, `"250ms"`; a bare number means seconds. Raises ValueError."""
        if isinstance(text, Duration):
            return text
        if isinstance(text, bool):
            raise ValueError("a duration such as 10s, 500ms or 1h30m is expected, not true or false")
        if isinstance(text, (int, float)):
            if not 0 <= text < 1e12:
                raise ValueError(f"{text} is not a duration; write for instance 10s, 500ms or 1h30m")
            return cls(round(text * 1_000_000))
        compact = text.replace(" ", "")
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", compact):
            return cls.parse(float(compact))
        parts = _DURATION.findall(compact)
        if not parts or "".join(number + unit for number, unit in parts) != compact:
            raise ValueError(f"{text!r} is not a duration; write for instance 10s, 500ms or 1h30m")
        return cls(round(sum(float(number) * _US[unit] for number, unit in parts)))

    @property
    def seconds(self) -> float:
        return self.us / 1_000_000

    def __str__(self) -> str:
        if self.us == 0:
            return "0s"
        text, rest = "", self.us
        for unit in ("d", "h", "m", "s", "ms", "us"):
            count, rest = divmod(rest, _US[unit])
            if count:
                text += f"{count}{unit}"
        return text


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """A number of bytes, never negative."""

    bytes: int

    @classmethod
    def parse(cls, text: str | int | Size) -> Size:
        """`"64MiB"`, `"2GB"`; a bare number means bytes. Raises ValueError."""
        if isinstance(text, Size):
            return text
        if isinstance(text, bool):
            raise ValueError("a size such as 64MiB is expected, not true or false")
        if isinstance(text, int):
            if text < 0:
                raise ValueError(f"{text} is not a size; write for instance 64MiB or 2GB")
            return cls(text)
        match = _SIZE.fullmatch(text.strip())
        if match is None or match[2].upper() not in _BYTES:
            raise ValueError(f"{text!r} is not a size; write for instance 64MiB or 2GB")
        return cls(round(float(match[1]) * _BYTES[match[2].upper()]))

    def __str__(self) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            factor = _BYTES[unit.upper()]
            if self.bytes >= factor and self.bytes % factor == 0:
                return f"{self.bytes // factor}{unit}"
        return f"{self.bytes}B"
