"""How long to pause after the n-th failure in a row: exponential with jitter, bounded."""

from __future__ import annotations

import zlib

FIRST = 0.1
LONGEST = 30.0


def pause(attempt: int, name: str, *, asked: float | None = None, longest: float = LONGEST) -> float:
    """Seconds to wait before try `attempt` + 1 (`attempt` counts from 1).

    The jitter is 50 to 100 % of the exponential pause, taken from a hash of name and attempt: components that failed
    together come back apart, and a simulation sees the same pauses each time. `asked` is what the other side asked for;
    `longest` is short where a try costs nobody anything, as with the own disk.
    """
    bounded = min(longest, FIRST * 2.0 ** min(attempt - 1, 20))
    share = 0.5 + 0.5 * (zlib.crc32(f"{name}:{attempt}".encode()) / 2**32)
    return max(bounded * share, min(asked or 0.0, 300.0))
