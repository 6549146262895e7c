"""Simulated data: a fleet of sensors with injected faults, or business events."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.clock import SystemClock
from headrace.component import (
    EVENTS,
    TIMESTAMP,
    Arrival,
    Cursor,
    Duration,
    PlanError,
    Reject,
    Rows,
    Source,
    Topic,
    option,
)  # fmt: skip
from headrace.formats import FormatFaultError, decode
from headrace.model import open_struct
from headrace.sources.generate_fleet import TRUTH, Fleet, Integers, event_times, stream
from headrace.sources.generate_lines import joined, texts
from headrace.sources.generate_records import PROFILES

_BLOCK = 16_384  # events made at once; whole readings of all devices, so it differs with their number
_SHORT, _LONG = (
    0.02,
    0.1,
)  # seconds between looks at the clock while events are due at a rate: some 20 at a time
_STRAY_US = 10_000_000  # further off the clock than this (a pause, a clock step), real time is anchored anew
_STREAM_FAULTS = 1 << 61  # apart from the fleet's streams
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Generate(Source, frozen=True, kw_only=True):
    """Simulated data, the same for the same seed: sensors with daily and short seasons, noise, drift and injected
    anomalies (spike, level shift, drift, stuck, dropout), whose ground truth goes to a topic of its own; or customer,
    transaction and analytics events. Shares of late, duplicate and malformed events exercise what must cope with them.

    A pause is not made up for: real time goes on with the present. With `start`, or `rate: 0`, time is simulated.
    """

    profile: Annotated[
        Literal["fleet", "customers", "transactions", "analytics"], option("what kind of events")
    ] = "fleet"
    devices: Annotated[int, option("number of senders", ge=1, le=10_000_000)] = 200
    rate: Annotated[
        float, option("events a second over all senders; 0: as fast as they are taken", ge=0, le=1e8)
    ] = 100.0
    count: Annotated[int, option("events in all; 0: for ever", ge=0)] = 0
    batch: Annotated[int, option("most events handed over at once", ge=1, le=1_000_000)] = 10_000
    metrics: Annotated[
        tuple[str, ...], option("what the sensors measure; known names have fitting levels", min_length=1)
    ] = ("temperature", "humidity", "pressure", "vibration")
    season: Annotated[Duration, option("length of the short season beside the daily one")] = Duration.parse(
        "10m"
    )
    anomalies: Annotated[float, option("share of the readings that lie in an anomaly", ge=0, le=0.05)] = 0.005
    late: Annotated[float, option("share of the events that come late", ge=0, le=1)] = 0.0
    late_by: Annotated[Duration, option("how late at most")] = Duration.parse("30s")
    duplicates: Annotated[float, option("share of the events that come twice", ge=0, le=1)] = 0.0
    malformed: Annotated[float, option("share of the events that can't be read", ge=0, le=1)] = 0.0
    errors: Annotated[
        float, option("share of the sensors' events of type `error` instead of `reading`", ge=0, le=1)
    ] = 0.005
    seed: Annotated[int, option("chooses the random numbers", ge=0, le=2**63 - 1)] = 1
    start: Annotated[
        str, option("event time of the first event (ISO 8601); empty: now", examples=["2024-01-01T00:00:00Z"])
    ] = ""
    truth: Annotated[
        str, option("topic for the injected anomalies; empty: none", pattern=r"^[A-Za-z0-9_.-]*$")
    ] = "anomaly_truth"

    @classmethod
    def example(cls) -> Generate:
        return cls(
            devices=7, rate=0, count=5_000, batch=999, start="2024-01-01T00:00:00Z", anomalies=0.02, late=0.05,
            duplicates=0.02, malformed=0.01,
        )  # fmt: skip

    def check(self) -> None:
        if self.start:
            try:
                _microseconds(self.start)
            except ValueError:
                raise PlanError(
                    f"generate: start {self.start!r} is not a time such as 2024-01-01T00:00:00Z"
                ) from None
        if self.season.us < 1_000_000:
            raise PlanError("generate: season is at least 1s")
        if len(set(self.metrics)) < len(self.metrics) or not all(self.metrics):
            raise PlanError("generate: every metric needs a name of its own")

    def schema(self) -> pa.Schema:
        if self.profile == "fleet":
            fields = [pa.field(name, pa.float64()) for name in self.metrics]
        else:
            fields = PROFILES[self.profile].types_of_fields()
        return EVENTS.set(EVENTS.get_field_index("payload"), open_struct(fields))

    def topics(self) -> Mapping[str, pa.Schema]:
        return {self.truth: TRUTH} if self.truth and self.profile == "fleet" else {}

    def read(self, shard: str, cursor: Cursor) -> Iterator[Arrival]:
        """The cursor is `{"next": number of the next event, "start_us": time of event 0}`."""
        clock = SystemClock()
        never = threading.Event()
        step_us = self._step_us()
        number = int(cursor["next"]) if cursor else 0
        start_us = (
            int(cursor["start_us"])
            if cursor
            else (_microseconds(self.start) if self.start else clock.now_us())
        )
        following = self.rate > 0 and not self.start
        began, first = clock.monotonic(), number
        maker = _Maker(self)
        tick = min(_LONG, max(_SHORT, 20 / self.rate)) if self.rate else _SHORT
        idle = 0.0
        while not self.count or number < self.count:
            end = number + self.batch
            if following:
                behind = clock.now_us() - (start_us + number * step_us)
                if abs(behind) > _STRAY_US:
                    start_us += round(behind)
                    behind = 0.0
                end = min(end, number + int(behind / step_us + 1e-9))
            elif self.rate:
                end = min(end, first + int((clock.monotonic() - began) * self.rate))
            if self.count:
                end = min(end, self.count)
            if end <= number:
                if idle >= 0.25:
                    idle = 0.0
                    yield Arrival()
                idle += tick
                clock.wait(never, tick)
                continue
            idle = 0.0
            end = min(end, maker.block_end(number))
            rows, rejects = maker.rows(number, end, start_us)
            beside = {}
            if self.truth and maker.fleet is not None:
                truth = maker.fleet.truth(number, end, start_us, step_us)
                if truth is not None:
                    beside[self.truth] = truth
            number = end
            yield Arrival(rows, {"next": number, "start_us": start_us}, rejects, beside)

    def lines(self, *, start_us: int = 0) -> Iterator[bytes]:
        """The same events as NDJSON, malformed ones included, without waiting: for ever when `count` is 0.

        Each piece holds at most `batch` events, whole lines. Event 0 is at `start` if that is set, else at `start_us`.
        """
        maker = _Maker(self)
        number = 0
        start_us = _microseconds(self.start) if self.start else start_us
        while not self.count or number < self.count:
            end = min(number + self.batch, maker.block_end(number))
            end = min(end, self.count) if self.count else end
            yield maker.lines(number, end, start_us)
            number = end

    def _step_us(self) -> float:
        """Between one event and the next. As fast as possible still means one reading a second, in simulated time."""
        return 1e6 / (self.rate or self.devices)


class _Maker:
    """Makes events by number, a block at a time."""

    def __init__(self, options: Generate) -> None:
        self._options = options
        self._step_us = options._step_us()
        self.fleet: Fleet | None = None
        if options.profile == "fleet":
            self.fleet = Fleet(
                devices=options.devices,
                metrics=options.metrics,
                seed=options.seed,
                anomalies=options.anomalies,
                season_us=options.season.us,
            )
        rounds = max(1, _BLOCK // options.devices)
        self._rounds = rounds
        self._size = rounds * options.devices
        self._schema = options.schema()
        self._topic = Topic("events", self._schema)
        ids = self.fleet.ids if self.fleet is not None else self._names()
        self._ids: pa.Array = pa.concat_arrays([ids] * rounds)
        self._block = -1
        shares = {"late": options.late, "duplicates": options.duplicates, "malformed": options.malformed}
        self._shares = [name for name, share in shares.items() if share]
        self._payload: pa.Array = None
        self._types: pa.Array = None
        self._faults: dict[str, npt.NDArray[np.float64]] = {}

    def _names(self) -> pa.Array:
        prefix = PROFILES[self._options.profile].source
        return pa.array([f"{prefix}-{i + 1:04d}" for i in range(self._options.devices)], pa.string())

    def block_end(self, number: int) -> int:
        """The first event after the block of `number`."""
        return (number // self._size + 1) * self._size

    def rows(self, first: int, end: int, start_us: int) -> tuple[Rows, list[Reject]]:
        """Events `[first, end)` of one block: rows, and those that can't be read."""
        rows, repeat, broken = self._events(first, end, start_us)
        sent_us = start_us + round(end * self._step_us)
        rejects = [
            reject for _, raw in self._broken(rows, broken, first) for reject in self._verdict(raw, sent_us)
        ]
        if repeat is not None:
            rows = rows.take(_indices(repeat))
        return rows, rejects

    def lines(self, first: int, end: int, start_us: int) -> bytes:
        """Events `[first, end)` of one block as NDJSON."""
        rows, repeat, broken = self._events(first, end, start_us)
        if not len(broken):
            return joined(texts(rows if repeat is None else rows.take(_indices(repeat))))
        assert repeat is not None
        damaged = [raw + b"\n" for _, raw in self._broken(rows, broken, first)]
        lines = pa.concat_arrays([texts(rows).cast(pa.binary()), pa.array(damaged, pa.binary())])
        order = np.arange(len(repeat))
        order[broken] = len(repeat) + np.arange(len(broken))
        repeat[broken] = 1
        return joined(lines.take(pa.array(np.repeat(order, repeat))))

    def _events(self, first: int, end: int, start_us: int) -> tuple[Rows, Integers | None, Integers]:
        """All events, how often each is sent (None: once), and the indices of those that are sent broken (0 times)."""
        block = first // self._size
        if block != self._block:
            self._make(block)
        options = self._options
        low, high = first - block * self._size, end - block * self._size
        sent = event_times(np.arange(first, end), start_us, self._step_us)
        times = sent
        if options.late:
            drawn = self._faults["late"][low:high]
            # The chance that made it late also says by how much.
            times = np.where(
                drawn < options.late,
                sent - (drawn / options.late * options.late_by.us).astype(np.int64),
                sent,
            )
        arrays = [
            self._ids.slice(low, high - low),
            pa.array(times, TIMESTAMP),
            pa.array(sent, TIMESTAMP),
            self._types.slice(low, high - low),
            self._payload.slice(low, high - low),
        ]
        rows = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        repeat: Integers | None = None
        broken = np.zeros(0, np.int64)
        if options.duplicates or options.malformed:
            repeat = np.ones(high - low, np.int64)
            if options.duplicates:
                repeat += self._faults["duplicates"][low:high] < options.duplicates
            if options.malformed:
                broken = np.flatnonzero(self._faults["malformed"][low:high] < options.malformed)
                repeat[broken] = 0
        return rows, repeat, broken

    def _make(self, block: int) -> None:
        options = self._options
        rng = stream(options.seed, block)
        first = block * self._rounds
        numbers = np.arange(block * self._size, (block + 1) * self._size)
        if self.fleet is not None:
            times_us = event_times(np.arange(first, first + self._rounds) * options.devices, 0, self._step_us)
            matrices = self.fleet.rounds(first, self._rounds, times_us, rng)
            arrays = [
                pa.array(matrix.ravel(), pa.float64(), from_pandas=True) for matrix in matrices
            ]  # NaN is null
            failing = pa.array(rng.random(self._size) < options.errors)
            self._types = pc.if_else(failing, pa.scalar("error"), pa.scalar("reading"))
        else:
            records = PROFILES[options.profile]
            arrays = [draw(rng, numbers) for draw in records.fields.values()]
            self._types = records.types(rng, numbers)
        fields = list(self._schema.field("payload").type)
        self._payload = pa.StructArray.from_arrays(arrays, fields=fields)
        faults = stream(options.seed, _STREAM_FAULTS + block)
        self._faults = {name: faults.random(self._size) for name in self._shares}
        self._block = block

    def _broken(self, rows: Rows, broken: Integers, first: int) -> list[tuple[int, bytes]]:
        """The broken events by index, as what a faulty sender would have sent. Row loop: they are few."""
        if not len(broken):
            return []
        whole = texts(rows.take(pa.array(broken))).to_pylist()
        return [
            (int(i), _DAMAGES[(first + int(i)) * 7 % len(_DAMAGES)](text.rstrip("\n").encode()))
            for i, text in zip(broken, whole, strict=True)
        ]

    def _verdict(self, raw: bytes, now_us: int) -> list[Reject]:
        """What the platform says to a broken event."""
        try:
            decoded = decode(raw, media_type="application/x-ndjson", topic=self._topic, now_us=now_us)
        except FormatFaultError as fault:
            return [Reject(raw, "malformed_json", str(fault))]
        return list(decoded.rejects)


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) * 2 // 3]


_DAMAGES: tuple[Any, ...] = (
    _cut,
    lambda raw: raw.replace(b'"sourceId"', b'"source"', 1),
    lambda raw: raw.replace(b'"timestamp":"', b'"timestamp":"yesterday ', 1),
    lambda raw: raw.replace(b'"payload":{', b'"payload":{"reading":NaN,', 1),
    lambda raw: b"<html><body><h1>502 Bad Gateway</h1></body></html>",
    lambda raw: raw.replace(b'"payload":{', b'"payload":{"note":"caf\xe9",', 1),
    lambda raw: raw[: raw.index(b'"payload":')] + b'"payload":[1,2,3]}',
    lambda raw: raw.replace(b'","', b"','", 1),
    lambda raw: raw.replace(b'"timestamp":"20', b'"timestamp":"21', 1),
    lambda raw: raw[: raw.index(b'"payload":')] + b'"payload":' + b'{"a":' * 80 + b"1" + b"}" * 81,
)
"""Ways in which real senders go wrong."""


def _indices(repeat: Integers) -> pa.Array:
    return pa.array(np.repeat(np.arange(len(repeat)), repeat))


def _microseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round((moment - _EPOCH).total_seconds() * 1e6)
