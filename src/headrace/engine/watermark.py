"""Watermark: the event time below which nothing more is expected from a worker's inputs.

It is the minimum over the inputs (partitions of topics) of the newest event time seen there, less the pipeline's
`delay`. An input without news for `idle_after` no longer holds it back, and when all are idle it goes on with the
clock, so that windows close on a stream that has stopped. It never goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headrace.units import Duration

NONE_US = -(2**62)
"""Before any event."""

Input = tuple[str, int]
"""(topic, partition)"""


@dataclass
class Watermark:
    """Follows the inputs of one worker. Event times in microseconds, `at` in monotonic seconds."""

    delay: Duration
    idle_after: Duration
    current_us: int = NONE_US
    newest_us: dict[Input, int] = field(default_factory=dict)
    _heard: dict[Input, float] = field(default_factory=dict)

    def watch(self, sources: Iterable[Input], at: float) -> None:
        """These inputs are read from now on. One that stays empty holds the watermark back for `idle_after`, like one
        that falls silent: its first rows may be older than what the others have shown."""
        for source in sources:
            self._heard.setdefault(source, at)

    def see(self, source: Input, newest_us: int, at: float) -> None:
        """Rows of an input were read; `newest_us` is their greatest event time."""
        self.newest_us[source] = max(newest_us, self.newest_us.get(source, NONE_US))
        self._heard[source] = at

    def restore(self, current_us: int, newest_us: Mapping[Input, int], at: float) -> None:
        """Go on from a checkpoint; silence counts from now."""
        self.current_us = current_us
        self.newest_us = dict(newest_us)
        self._heard = dict.fromkeys(newest_us, at)

    def advance(self, at: float) -> int:
        """The watermark at monotonic time `at`."""
        if not self.newest_us:
            return self.current_us
        active = [source for source, heard in self._heard.items() if at - heard < self.idle_after.seconds]
        if active:
            reached = min(self.newest_us.get(source, NONE_US) for source in active)
        else:
            silence = at - max(self._heard.values())
            reached = max(self.newest_us.values()) + round(silence * 1_000_000)
        self.current_us = max(self.current_us, reached - self.delay.us)
        return self.current_us
