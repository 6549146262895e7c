"""The only reader of time in the core. Everything else is handed a Clock, or an epoch's `now_us`."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    def now_us(self) -> int:
        """Wall clock: microseconds since 1970 UTC. May jump when the system clock is set."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back. For intervals, timeouts and rates."""

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until `event` is set, `timeout` seconds at most; True when it is set."""


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(timeout)


class FakeClock:
    """A clock that moves only when told to, for tests and simulation. Waiting moves it."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self._now_us = now_us
        self._monotonic = 0.0

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_us += round(seconds * 1_000_000)
        self._monotonic += seconds

    def set_wall(self, now_us: int) -> None:
        """Set the wall clock only, forward or back, as an NTP step does."""
        self._now_us = now_us

    def wait(self, event: threading.Event, timeout: float) -> bool:
        if not event.is_set():
            self.advance(timeout)
        return event.is_set()
