"""The Delta sink against real tables on disk, read back by other readers than the one that wrote."""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.component import DataError, PlanError, RetryableError
from headrace.model import DEAD_LETTERS, EVENTS, TIMESTAMP, Topic
from headrace.sinks.delta import Delta
from headrace.units import Duration

SCHEMA = pa.schema([("sensor_id", pa.string()), ("timestamp", TIMESTAMP), ("value", pa.float64())])
TOPIC = Topic("measurements", SCHEMA, partitions=4)


def rows(start: int, count: int, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """`value` is the offset, so that what arrived can be told from what didn't."""
    offsets = range(start, start + count)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"s{i % 7}" for i in offsets]),
            pa.array([1_700_000_000_000_000 + i * 1_000_000 for i in offsets], TIMESTAMP),
            pa.array([float(i) for i in offsets]),
        ],
        schema=schema,
    )


def stored(path: Path, topic: str = "measurements") -> pa.Table:
    return DeltaTable(str(path / topic)).to_pyarrow_table()


def sink(path: Path, **options: object) -> Delta:
    return Delta(path=str(path), **options)  # type: ignore[arg-type]


def test_rows_and_position_arrive_together_and_survive_reopening(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(TOPIC, name="silver")
    assert writer.committed(0) == 0
    writer.write(0, rows(0, 10), 10)
    writer.write(2, rows(100, 5), 5)
    writer.close()
    again = sink(tmp_path).open(TOPIC, name="silver")
    assert [again.committed(p) for p in range(4)] == [10, 0, 5, 0]
    assert sorted(stored(tmp_path)["value"].to_pylist()) == [*range(10), *range(100, 105)]


def test_rows_written_again_are_there_once(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(TOPIC, name="silver")
    writer.write(0, rows(0, 10), 10)
    writer.write(0, rows(0, 10), 10)
    writer.write(0, rows(3, 7), 10)
    sink(tmp_path).open(TOPIC, name="silver").write(0, rows(5, 10), 15)  # half of it is in already
    assert sorted(stored(tmp_path)["value"].to_pylist()) == list(range(15))


def test_an_old_span_never_moves_the_position_back(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(TOPIC, name="silver")
    writer.write(0, rows(0, 10), 10)
    version = DeltaTable(str(tmp_path / "measurements")).version()
    writer.write(0, rows(0, 5), 5)
    sink(tmp_path).open(TOPIC, name="silver").write(0, rows(2, 3), 5)
    assert DeltaTable(str(tmp_path / "measurements")).version() == version
    again = sink(tmp_path).open(TOPIC, name="silver")
    assert again.committed(0) == 10
    again.write(0, rows(8, 4), 12)
    assert sorted(stored(tmp_path)["value"].to_pylist()) == list(range(12))


def test_two_sinks_on_one_topic_keep_positions_of_their_own(tmp_path: Path) -> None:
    sink(tmp_path).open(TOPIC, name="one").write(0, rows(0, 3), 3)
    assert sink(tmp_path).open(TOPIC, name="two").committed(0) == 0


def test_a_writer_thought_dead_does_not_write_its_span_again(tmp_path: Path) -> None:
    zombie, successor = (sink(tmp_path).open(TOPIC, name="silver") for _ in range(2))
    zombie.write(0, rows(0, 5), 5)
    assert successor.committed(0) == 5
    successor.write(0, rows(5, 5), 10)
    zombie.write(0, rows(5, 5), 10)
    zombie.write(0, rows(5, 10), 15)
    assert sorted(stored(tmp_path)["value"].to_pylist()) == list(range(15))


def test_writers_of_the_same_span_at_the_same_moment_store_it_once(tmp_path: Path) -> None:
    writers = [sink(tmp_path).open(TOPIC, name="silver") for _ in range(3)]
    gate = threading.Barrier(3)
    failures: list[BaseException] = []

    def run(writer: object) -> None:
        try:
            for start in range(0, 50, 10):
                gate.wait()
                while True:
                    try:
                        writer.write(1, rows(start, 10), start + 10)  # type: ignore[attr-defined]
                        break
                    except RetryableError:
                        continue
        except BaseException as error:  # reported in the main thread
            failures.append(error)
            gate.abort()

    threads = [threading.Thread(target=run, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(stored(tmp_path)["value"].to_pylist()) == list(range(50))


def test_no_rows_make_no_commit(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(TOPIC, name="silver")
    writer.write(0, rows(0, 0), 7)
    assert not (tmp_path / "measurements").exists()
    assert writer.committed(0) == 0


def payloads(*values: dict[str, object] | None, type_: pa.DataType) -> pa.RecordBatch:
    n = len(values)
    return pa.RecordBatch.from_arrays(
        [pa.array(["a"] * n), pa.array(range(n), TIMESTAMP), pa.array(list(values), type_)],
        names=["source_id", "timestamp", "payload"],
    )


def test_new_columns_and_new_fields_inside_structs_are_added(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(Topic("events", EVENTS), name="bronze")
    t = pa.struct([("t", pa.float64())])
    deeper = pa.struct([("h", pa.int64()), ("n", pa.struct([("x", pa.string())])), ("t", pa.float64())])
    deepest = pa.struct([("n", pa.struct([("y", pa.list_(pa.int64())), ("x", pa.string())]))])
    writer.write(0, payloads({}, None, type_=pa.struct([])), 2)  # nothing to keep in payload yet
    writer.write(0, payloads({"t": 1.0}, None, type_=t), 4)
    writer.write(0, payloads({"t": 2.0, "h": 5, "n": {"x": "q"}}, {"h": 6}, type_=deeper), 6)
    writer.write(
        0,
        payloads({"n": {"x": "z", "y": [1, 2]}}, type_=deepest).append_column("raw", pa.array([b"\xff"])),
        7,
    )
    writer.write(0, payloads({"t": 3.0}, type_=t), 8)
    table = stored(tmp_path, "events")
    full = {"t": None, "h": None, "n": None}
    got = [row["payload"] and {**full, **row["payload"]} for row in table.to_pylist()]
    expected = [
        *[None] * 3,
        {**full, "t": 1.0},
        {"t": 2.0, "h": 5, "n": {"x": "q", "y": None}},
        {**full, "h": 6},
        {**full, "n": {"x": "z", "y": [1, 2]}},
        {**full, "t": 3.0},
    ]
    assert sorted(map(repr, got)) == sorted(map(repr, expected))
    assert sorted(table["raw"].to_pylist(), key=str) == sorted([None] * 7 + [b"\xff"], key=str)
    assert sink(tmp_path).open(Topic("events", EVENTS), name="bronze").committed(0) == 8


def test_a_number_that_turns_out_to_have_fractions_keeps_them(tmp_path: Path) -> None:
    """Appending doubles to a column of whole numbers would cut the fractions without a word."""
    writer = sink(tmp_path, partition_by=["event_type"]).open(Topic("events", EVENTS), name="bronze")
    writer.write(0, payloads({"v": 1}, {"v": 2}, type_=pa.struct([("v", pa.int64())])), 2)
    writer.write(0, payloads({"v": 2.5}, type_=pa.struct([("v", pa.float64())])), 3)
    writer.write(0, payloads({"v": 4}, type_=pa.struct([("v", pa.int32())])), 4)
    table = stored(tmp_path, "events")
    assert sorted(row["v"] for row in table["payload"].to_pylist()) == [1.0, 2.0, 2.5, 4.0]
    assert writer.committed(0) == 4
    assert DeltaTable(str(tmp_path / "events")).metadata().partition_columns == ["event_type"]


def test_every_arrow_type_of_a_topic_is_kept_with_its_value(tmp_path: Path) -> None:
    columns = {
        "dictionary": pa.array(["x", None]).dictionary_encode(),
        "in_struct": pa.StructArray.from_arrays([pa.array(["y", "z"]).dictionary_encode()], names=["d"]),
        "u8": pa.array([200, None], pa.uint8()),
        "u64": pa.array([2**64 - 1, 0], pa.uint64()),
        "half": pa.array(np.array([1.5, 2.5], np.float16)),
        "nanos": pa.array([1_500, None], pa.timestamp("ns", tz="UTC")),
        "zoned": pa.array([0, 1], pa.timestamp("us", tz="America/Sao_Paulo")),
        "naive": pa.array([0, 1], pa.timestamp("us")),
        "time": pa.array([3_661_000_000, None], pa.time64("us")),
        "duration": pa.array([5, None], pa.duration("ms")),
        "large": pa.array(["l", None], pa.large_string()),
        "fixed": pa.array([b"ab", None], pa.binary(2)),
        "list": pa.array([[1], None], pa.list_(pa.uint16())),
        "nothing": pa.nulls(2),
        "empty": pa.array([{}, None], pa.struct([])),
    }
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    writer = sink(tmp_path).open(Topic("all", batch.schema), name="x")
    writer.write(0, batch, 2)
    writer.write(0, batch, 4)
    table = stored(tmp_path, "all").slice(0, 2).to_pylist()
    first = next(row for row in table if row["dictionary"] == "x")
    assert first["in_struct"] == {"d": "y"}
    assert (first["u8"], int(first["u64"]), first["half"], first["duration"]) == (200, 2**64 - 1, 1.5, 5_000)
    assert (first["large"], first["fixed"], first["list"], first["time"]) == (
        "l",
        b"ab",
        [1],
        "01:01:01.000000",
    )
    assert first["zoned"].timestamp() == 0
    assert "nothing" not in first
    assert "empty" not in first


def test_a_type_without_a_place_in_delta_is_refused_by_name_before_any_row(tmp_path: Path) -> None:
    schema = pa.schema([("gap", pa.month_day_nano_interval())])
    with pytest.raises(PlanError, match="gap: month_day_nano_interval can't be kept"):
        sink(tmp_path).open(Topic("odd", schema), name="x")


def test_dead_letters_keep_their_bytes(tmp_path: Path) -> None:
    raw = bytes(range(256))
    values = [[0], ["t"], ["http"], ["parse"], ["why"], [None], [raw], [None], [None]]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(v, f.type) for v, f in zip(values, DEAD_LETTERS, strict=True)], schema=DEAD_LETTERS
    )
    sink(tmp_path).open(Topic("dead_letters", DEAD_LETTERS), name="x").write(0, batch, 1)
    assert stored(tmp_path, "dead_letters")["raw"].to_pylist() == [raw]


def test_bronze_folders_by_type_and_date(tmp_path: Path) -> None:
    writer = sink(tmp_path, partition_by=["event_type", "year", "month", "day"]).open(
        Topic("events", EVENTS), name="bronze"
    )
    kinds = ["reading", "a/b c=é%", None, "x:y*?[1]", "reading"]
    times = [1_700_000_000_000_000, 0, -1, 1_709_164_800_000_000, 1_700_000_000_000_001]
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(list("abcde")),
            pa.array(times, TIMESTAMP),
            pa.nulls(5, TIMESTAMP),
            pa.array(kinds, pa.string()),
        ],
        schema=pa.schema(list(EVENTS)[:4]),
    )
    writer.write(0, batch, 5)
    got = {
        r["source_id"]: (r["event_type"], r["year"], r["month"], r["day"])
        for r in stored(tmp_path, "events").to_pylist()
    }
    assert got == {
        "a": ("reading", 2023, 11, 14),
        "b": ("a/b c=é%", 1970, 1, 1),
        "c": (None, 1969, 12, 31),
        "d": ("x:y*?[1]", 2024, 2, 29),
        "e": ("reading", 2023, 11, 14),
    }
    assert (tmp_path / "events/event_type=reading/year=2023/month=11/day=14").is_dir()


def test_a_value_too_long_for_a_folder_is_a_data_fault_of_its_rows_only(tmp_path: Path) -> None:
    writer = sink(tmp_path, partition_by=["sensor_id"]).open(TOPIC, name="x")
    batch = rows(0, 4).set_column(0, "sensor_id", pa.array(["z", "é" * 100, "a", "é" * 100]))
    with pytest.raises(DataError) as refused:
        writer.write(0, batch, 4)
    assert refused.value.rows == (1, 3)
    writer.write(0, batch.take(pa.array([0, 2])), 4)
    assert sorted(stored(tmp_path)["sensor_id"].to_pylist()) == ["a", "z"]


def test_a_partition_column_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match="no column 'kind' in measurements; there are sensor_id, timestamp, value"
    ):
        sink(tmp_path, partition_by=["kind"]).open(TOPIC, name="x")


def test_times_far_in_past_and_future_are_kept(tmp_path: Path) -> None:
    times = [2**62, -(2**62), 253402300800_000000, -62135596800_000001, 0]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["a"] * 5), pa.array(times, TIMESTAMP), pa.array([1.0] * 5)], schema=SCHEMA
    )
    sink(tmp_path, partition_by=["year", "month", "day"]).open(TOPIC, name="x").write(0, batch, 5)
    assert sorted(stored(tmp_path)["timestamp"].cast(pa.int64()).to_pylist()) == sorted(times)


def test_housekeeping_keeps_the_table_small_and_the_rows_whole(tmp_path: Path) -> None:
    options = {"compact_every": 5, "checkpoint_every": 3, "vacuum_after": Duration(0)}
    writer = sink(tmp_path, **options).open(TOPIC, name="x")
    for i in range(50):
        writer.write(0, rows(i * 10, 10), (i + 1) * 10)
    table = DeltaTable(str(tmp_path / "measurements"))
    assert len(table.file_uris()) <= 6
    assert list((tmp_path / "measurements/_delta_log").glob("*.checkpoint.parquet"))
    assert len(list((tmp_path / "measurements").glob("*.parquet"))) <= 20  # vacuum took the replaced ones
    assert sorted(stored(tmp_path)["value"].to_pylist()) == list(range(500))
    assert sink(tmp_path, **options).open(TOPIC, name="x").committed(0) == 500


def test_housekeeping_by_someone_else_does_not_disturb(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(TOPIC, name="x")
    writer.write(0, rows(0, 10), 10)
    other = DeltaTable(str(tmp_path / "measurements"))
    write_deltalake(other, rows(500, 1), mode="append")
    other.optimize.compact()
    other.create_checkpoint()
    writer.write(0, rows(10, 10), 20)
    assert sorted(stored(tmp_path)["value"].to_pylist()) == [*range(20), 500]


def test_other_readers_agree(tmp_path: Path) -> None:
    writer = sink(tmp_path).open(TOPIC, name="x")
    writer.write(0, rows(0, 1000), 1000)
    files = DeltaTable(str(tmp_path / "measurements")).file_uris()
    with duckdb.connect() as lake:
        total = lake.execute("select count(*), sum(value) from read_parquet($1)", [files]).fetchone()
    assert total == (1000, sum(range(1000)))


def test_a_place_that_cannot_be_written_is_an_outage_that_says_what_was_tried(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RetryableError, match="can't be written to"):
        sink(blocked).connect()
    writer = sink(blocked).open(TOPIC, name="x")
    with pytest.raises(RetryableError, match=r"writing measurements\[0\] up to 3 to"):
        writer.write(0, rows(0, 3), 3)
    sink(tmp_path / "fresh").connect()
    assert list((tmp_path / "fresh").iterdir()) == []


def test_an_unreachable_object_store_is_an_outage(tmp_path: Path) -> None:
    options = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "max_retries": "0", "timeout": "1s",
    }  # fmt: skip
    away = Delta(path="s3://bucket/lake", storage_options=options)
    with pytest.raises(RetryableError):
        away.open(TOPIC, name="x").committed(0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), max_size=8))
def test_any_cut_with_any_repeats_and_restarts_gives_the_rows_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, bool, bool]]
) -> None:
    path = tmp_path_factory.mktemp("lake")
    writer = sink(path, compact_every=3, checkpoint_every=2).open(TOPIC, name="x")
    end = 0
    for count, repeat, restart in cuts:
        start, end = end, end + count
        writer.write(0, rows(start, count), end)
        if restart:
            writer = sink(path).open(TOPIC, name="x")
            assert writer.committed(0) == end
        if repeat:
            writer.write(0, rows(start, count), end)
    if end:
        assert sorted(stored(path)["value"].to_pylist()) == list(range(end))


@pytest.mark.parametrize("cluster_by", [(), ("source_id",)])
def test_a_part_of_a_larger_batch_with_structs_is_written_as_it_is(
    tmp_path: Path, cluster_by: tuple[str, ...]
) -> None:
    writer = sink(tmp_path, cluster_by=cluster_by).open(Topic("events", EVENTS), name="x")
    whole = payloads(*[{"v": i} for i in range(10)], type_=pa.struct([("v", pa.int64())]))
    writer.write(0, whole.slice(3, 4), 7)
    writer.write(0, whole.slice(5, 5), 10)
    assert sorted(p["v"] for p in stored(tmp_path, "events")["payload"].to_pylist()) == list(range(3, 10))


def test_a_span_without_usable_rows_still_moves_the_position(tmp_path: Path) -> None:
    sink = Delta(path=str(tmp_path / "lake"))
    topic = Topic("things", pa.schema([pa.field("n", pa.int64())]))
    writer = sink.open(topic, name="lake")
    writer.write(0, pa.record_batch({"n": [1, 2]}), 2)
    writer.write(0, pa.record_batch({"n": pa.array([], pa.int64())}), 7)
    assert writer.committed(0) == 7
    writer.close()
    again = sink.open(topic, name="lake")
    assert again.committed(0) == 7
    again.write(0, pa.record_batch({"n": [9]}), 8)
    assert DeltaTable(str(tmp_path / "lake" / "things")).to_pyarrow_table().column("n").to_pylist() in (
        [1, 2, 9],
        [9, 1, 2],
    )
    again.close()
