"""What the engine must do over any log and any place for checkpoints.

    class TestEngineOverAcme(EngineConformance):
        def open(self, path, clock):
            return AcmeLog(path, clock=clock)

        def checkpoints(self, path):        # default: files under `path`
            return AcmeCheckpoints(path)

pytest then runs every test here against them. `durable = False` is for a log that lives in memory: a crash then keeps
the object and calls its `crash()`. Rows are judged by plain loops over what was fed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.clock import Clock, SystemClock
from headrace.engine.checkpoint import CheckpointStore
from headrace.engine.group import ThreadGroup
from headrace.engine.local import Checkpoints, EngineLimits
from headrace.errors import FencedError
from headrace.log import Log
from headrace.model import EVENTS, Rows, Topic, split
from headrace.pipeline import pipeline
from headrace.testing.engine_world import (
    READINGS,
    SECOND,
    START,
    SUMS,
    Crash,
    Dying,
    World,
    expected,
    readings,
)
from headrace.units import Duration


class EngineConformance:
    durable = True

    def open(self, path: Path, clock: Clock) -> Log:
        """The log in directory `path`, made if it isn't there."""
        raise NotImplementedError

    def checkpoints(self, path: Path) -> Checkpoints:
        """The checkpoints in directory `path`."""
        return CheckpointStore(path / "checkpoints")

    @contextmanager
    def world(self, partitions: int = 2) -> Iterator[World]:
        with tempfile.TemporaryDirectory() as folder:
            made = World(self, Path(folder), partitions)
            try:
                yield made
            finally:
                made.log.close()

    # -- exactly once ------------------------------------------------------------------------------

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        seed=st.integers(0, 1000),
        moves=st.lists(st.sampled_from(["feed", "step", "checkpoint", "crash"]), max_size=25),
        max_rows=st.integers(1, 20),
    )
    def test_any_history_of_crashes_gives_each_window_once(
        self, seed: int, moves: list[str], max_rows: int
    ) -> None:
        given_ = readings(seed)
        with self.world(partitions=1) as world:
            worker, fed = world.worker(max_rows=max_rows), 0
            for move in moves:
                if move == "feed":
                    world.feed(given_[fed : fed + 7])
                    fed += 7
                elif move == "step":
                    worker.step()
                elif move == "checkpoint":
                    worker.checkpoint()
                else:
                    world.crash()
                    worker = world.worker(max_rows=max_rows)
            if given_[fed:]:
                world.feed(given_[fed:])
            world.silence(worker)
            assert world.sums() == expected(given_)
            assert world.rows("dead_letters") == []

    @pytest.mark.parametrize("committed", [False, True], ids=["before commit", "after commit"])
    @pytest.mark.parametrize("at", range(1, 6))
    def test_death_around_a_commit_repeats_and_loses_nothing(self, at: int, committed: bool) -> None:
        given_ = readings(1)
        with self.world() as world:
            world.feed(given_)
            dying = cast(Log, Dying(world.log, at, committed=committed))
            with pytest.raises(Crash):
                World.drain(world.worker(max_rows=8, log=dying))
            world.crash()
            epochs = [epoch.number for epoch, _ in world.log.counts().values()]
            assert epochs == ([at] if committed else [at - 1] if at > 1 else [])
            worker = world.worker(max_rows=8)
            world.silence(worker)
            assert world.sums() == expected(given_)
            ((_, totals),) = world.log.counts().values()
            assert totals["received"] == len(given_)
            assert totals["emitted"] == len(expected(given_))

    def test_what_replay_needs_is_kept_by_retention(self) -> None:
        given_ = readings(2)
        with self.world() as world:
            short = Topic("readings", READINGS, 2, ("sensor_id",), retention=Duration(0))
            world.log.create(short)
            worker = world.worker(max_rows=5)
            for n in range(0, 60, 6):
                world.feed(given_[n : n + 6])
                worker.step()
                if n == 18:
                    worker.checkpoint()
                world.clock.advance(0.01)
                world.log.retain(world.clock.now_us() + 60 * SECOND)
            world.crash()
            worker = world.worker()
            world.silence(worker)
            assert world.sums() == expected(given_)
            for _ in range(2):  # what the checkpoint before last covers may go
                worker.checkpoint()
                world.feed([(500, "a", 1)])
                world.drain(worker)
            worker.checkpoint()
            assert world.log.retain(world.clock.now_us() + 60 * SECOND) > 0

    def test_a_second_worker_fences_the_first(self) -> None:
        given_ = readings(3)
        with self.world() as world:
            world.feed(given_)
            first, second = world.worker(max_rows=10), world.worker(max_rows=10)
            assert second.step()
            with pytest.raises(FencedError):
                first.step()
            world.silence(second)
            assert world.sums() == expected(given_)

    # -- schemas and changed pipelines -------------------------------------------------------------

    @pytest.mark.parametrize("restart", [False, True])
    def test_a_new_field_in_mid_stream_keeps_the_state(self, restart: bool) -> None:
        plan = pipeline("open", "events").window(
            "10s", by="source_id", aggregate={"n": "count(*)", "t": "sum(payload.t)", "h": "max(payload.h)"}
        )

        def events(world: World, *payloads: dict[str, float]) -> None:
            columns = {
                "source_id": ["a"] * len(payloads),
                "timestamp": [START + n for n in range(len(payloads))],
                "payload": list(payloads),
            }
            names = list(dict.fromkeys(name for payload in payloads for name in payload))
            payload = pa.struct([pa.field(name, pa.float64()) for name in names])
            schema = pa.schema([EVENTS.field(0), EVENTS.field(1), pa.field("payload", payload)])
            world.log.append("events", 0, pa.RecordBatch.from_pydict(columns, schema=schema))

        with self.world() as world:
            world.log.create(Topic("events", EVENTS))
            worker = world.worker(plan.to("grown"))
            events(world, {"t": 1}, {"t": 2})
            World.drain(worker)
            worker.checkpoint()
            if restart:
                world.crash()
                events(world, {"t": 4, "h": 50}, {"h": 60})
                worker = world.worker(plan.to("grown"))
            else:
                events(world, {"t": 4, "h": 50}, {"h": 60})
            World.drain(worker)
            world.crash()  # the epoch with the new field runs again
            worker = world.worker(plan.to("grown"))
            world.silence(worker)
            (row,) = world.rows("grown")
            assert (row["n"], row["t"], row["h"]) == (4, 7, 60)

    def test_changed_steps_keep_the_state_of_those_that_are_the_same(self) -> None:
        base = pipeline("p", "readings", delay="60s")
        before = base.dedupe(["sensor_id", "value"], within="50s").window("10s", by="sensor_id", count="*")
        after = base.where("value < 100").dedupe(["sensor_id", "value"], within="50s").derive(v="value * 2")
        with self.world() as world:
            worker = world.worker(before.to("before"))
            world.feed([(0, "a", 1), (1, "a", 2)])
            World.drain(worker)
            worker.checkpoint()
            world.crash()
            worker = world.worker(after.to("after"))
            world.feed([(2, "a", 1), (3, "a", 3), (4, "a", 200)])
            World.drain(worker)
            assert [row["v"] for row in world.rows("after")] == [6]  # 1 was seen before the change

    def test_a_changed_window_gives_what_it_holds_and_the_step_before_keeps_its_state(self) -> None:
        base = pipeline("p", "readings", delay="60s").dedupe(["sensor_id", "value"], within="50s")
        ten = base.window("10s", by="sensor_id", count="*", sum="value").to("sums")
        twenty = base.window("20s", by="sensor_id", count="*", sum="value").to("sums")
        with tempfile.TemporaryDirectory() as folder:
            world = World(self, Path(folder), 1)
            clock = SystemClock()
            store = CheckpointStore(Path(folder) / "group")
            world.worker(ten)  # makes the topic
            group = ThreadGroup(world.log, store, clock=clock, limits=EngineLimits())
            try:
                group.start(ten)
                world.feed([(0, "a", 1), (11, "a", 2)])
                _until(lambda: world.log.positions("pipeline:p").get(("readings", 0)) == 2)
                group.stop("p", twenty)
                assert world.sums() == {("a", 0): (1, 1), ("a", 10): (1, 2)}
                group.start(twenty)
                world.feed([(12, "a", 2), (13, "a", 3), (200, "b", 9)])
                _until(lambda: len(world.rows("sums")) == 3)
                ended = [row for row in world.rows("sums") if row["sum"] == 3]
                assert [row["count"] for row in ended] == [1]  # without the 2, which was there already
            finally:
                group.close()
                world.log.close()

    # -- several pipelines -------------------------------------------------------------------------

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30))
    def test_pipelines_that_meet_at_topics_agree_whoever_moves_first(
        self, moves: list[tuple[int, bool]]
    ) -> None:
        given_ = readings(4)
        plans = [
            pipeline("double", "readings").derive(value="value * 2").to("doubled"),
            pipeline("both", "doubled", "readings").derive(half="value / 2").to("mixed"),
            pipeline("total", "mixed", delay="1d")
            .window("10s", by="sensor_id", count="*", sum="value")
            .to("sums"),
        ]
        with self.world(partitions=1) as world:
            world.feed(given_)
            workers = [world.worker(plan, max_rows=9) for plan in plans]
            for number, restart in moves:
                workers[number].step()
                if restart:
                    workers[number] = world.worker(plans[number], max_rows=9)
            for worker in workers:
                World.drain(worker)
            world.silence(workers[2], 3 * 86_400)
            wanted = {key: (2 * n, 3 * total) for key, (n, total) in expected(given_).items()}
            assert world.sums() == wanted

    def test_a_pipeline_that_cannot_run_leaves_the_others_alone(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            world = World(self, Path(folder), 1)
            world.worker(SUMS)
            store = CheckpointStore(Path(folder) / "group")
            group = ThreadGroup(world.log, store, clock=SystemClock(), limits=EngineLimits())
            try:
                group.start(pipeline("bad", "readings").where("no_such_column > 1").to("sums"))
                group.start(pipeline("worse", "readings").window("1s", by="nothing").to("sums"))
                group.start(SUMS)
                world.feed([(0, "a", 1), (100, "a", 2)])
                _until(lambda: len(world.rows("sums")) == 1)
                states = {name: state for name, (state,) in group.states().items()}
                assert states["bad"].state == states["worse"].state == "failed"
                assert "no_such_column" in states["bad"].last_error
                assert states["sums"].state == "running"
            finally:
                group.close()
                world.log.close()

    # -- time and load -----------------------------------------------------------------------------

    def test_an_idle_partition_holds_windows_back_only_for_a_while(self) -> None:
        with self.world(partitions=2) as world:
            topic = world.log.topics()["readings"]
            probe = [(n, p) for n in "abcdefgh" for p in split(_one(n), topic.key, 2)]
            busy = next(name for name, partition in probe if partition == 0)
            quiet = next(name for name, partition in probe if partition == 1)
            worker = world.worker()  # delay 2s, idle_after 5s
            world.feed([(1, busy, 1), (1, quiet, 1)])
            World.drain(worker)
            world.feed([(30, busy, 1)])
            World.drain(worker)
            assert world.sums() == {}  # the other partition may still bring rows of the first window
            world.clock.advance(6)
            world.feed([(31, busy, 1)])
            World.drain(worker)
            assert world.sums() == {(busy, 0): (1, 1), (quiet, 0): (1, 1)}
            world.feed([(2, quiet, 7), (32, quiet, 8)])  # back, with one row that is too late now
            world.silence(worker)
            assert world.sums()[quiet, 30] == (1, 8)
            assert [letter["code"] for letter in world.rows("dead_letters")] == ["late"]

    def test_a_backlog_is_worked_off_in_bounded_epochs(self) -> None:
        given_ = [(n / 10, "abc"[n % 3], 1.0) for n in range(1000)]
        with self.world() as world:
            for n in range(0, 1000, 250):
                world.feed(given_[n : n + 250])
            worker = world.worker(max_rows=50)
            steps, before = 0, 0
            while worker.step():
                steps += 1
                ((epoch, totals),) = world.log.counts().values()
                assert epoch.number == steps
                assert 0 < totals["received"] - before <= 50
                before = totals["received"]
            assert before == 1000
            assert steps >= 20
            world.silence(worker)
            found = world.sums()
            assert sum(n for n, _ in found.values()) + len(world.rows("dead_letters")) == 1000


def _one(sensor: str) -> Rows:
    columns = {"timestamp": [START], "sensor_id": [sensor], "value": [0.0]}
    return pa.RecordBatch.from_pydict(columns, schema=READINGS)


def _until(done: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
