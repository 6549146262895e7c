"""The query store over real Delta tables and a log that is a plain list."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import QueryError
from headrace.jsonrows import json_array, json_lines, to_json_rows
from headrace.model import EVENTS, TIMESTAMP, Rows, Span, Topic, concat, conform, unify
from headrace.sinks.delta import Delta
from headrace.store import DeltaTableRef, Limits, Store
from headrace.units import Size

T0 = 1_700_000_000_000_000
SCHEMA = pa.schema(
    [("sensor_id", pa.string()), ("metric", pa.string()), ("value", pa.float64()), ("timestamp", TIMESTAMP)]
)


class ListLog:
    """The part of a log that the store reads, as lists."""

    def __init__(self, *topics: Topic) -> None:
        self._topics = {topic.name: topic for topic in topics}
        self._rows: dict[tuple[str, int], list[Rows]] = {}

    def put(self, topic: str, partition: int, rows: Rows) -> None:
        old = self._topics[topic]
        schema = unify(old.schema, rows.schema)
        self._topics[topic] = Topic(topic, schema, old.partitions, at=old.at)
        self._rows.setdefault((topic, partition), []).append(rows)

    def topics(self) -> dict[str, Topic]:
        return dict(self._topics)

    def extent(self, topic: str, partition: int) -> Span:
        return Span(0, sum(rows.num_rows for rows in self._rows.get((topic, partition), ())))

    def bounded(self, topic: str, partition: int, start: int, *, max_rows: int, max_bytes: int) -> Span:
        end = self.extent(topic, partition).end
        size = self.read(topic, partition, Span(start, end)).nbytes
        return Span(start, end if size <= max_bytes else start + 1)

    def read(self, topic: str, partition: int, span: Span) -> Rows:
        schema = self._topics[topic].schema
        everything = concat(
            [conform(rows, schema) for rows in self._rows.get((topic, partition), ())], schema
        )
        return everything.slice(span.start, len(span))


def measurements(start: int, count: int, step_us: int = 1_000_000) -> Rows:
    offsets = range(start, start + count)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"s{i % 5}" for i in offsets]),
            pa.array(["t" if i % 2 else "h" for i in offsets]),
            pa.array([float(i) for i in offsets]),
            pa.array([T0 + i * step_us for i in offsets], TIMESTAMP),
        ],
        schema=SCHEMA,
    )


@pytest.fixture
def half(tmp_path: Path) -> Iterator[tuple[Store, ListLog]]:
    """100 rows in two partitions, of which the Delta table has 60; offsets are values."""
    log = ListLog(Topic("measurements", SCHEMA, partitions=2))
    writer = Delta(path=str(tmp_path / "my lake")).open(log.topics()["measurements"], name="silver")
    for partition, start in ((0, 0), (1, 50)):
        log.put("measurements", partition, measurements(start, 50))
        writer.write(partition, measurements(start, 30), 30)
    refs = {"measurements": DeltaTableRef(str(tmp_path / "my lake"), {}, "silver")}
    with Store(log, refs) as store:  # type: ignore[arg-type]
        yield store, log


def values(store: Store, sql: str, **options: object) -> list[object]:
    table = store.query(sql, **options).table  # type: ignore[arg-type]
    return table.column(0).to_pylist()


def test_a_table_is_the_delta_snapshot_and_the_tail_of_the_log(half: tuple[Store, ListLog]) -> None:
    store, _ = half
    assert sorted(values(store, "SELECT value FROM measurements")) == [float(i) for i in range(100)]
    assert values(store, "SELECT count(*) FROM Measurements WHERE sensor_id = ?", params=["s1"]) == [20]


def test_no_row_twice_or_missing_while_the_sink_commits(half: tuple[Store, ListLog], tmp_path: Path) -> None:
    store, log = half
    log.put("measurements", 0, measurements(1000, 400))
    writer = Delta(path=str(tmp_path / "my lake"), compact_every=5).open(
        log.topics()["measurements"], name="silver"
    )
    done = threading.Event()

    def commit() -> None:
        for end in range(31, 451, 14):
            start = end - 14 if end > 31 else 30
            writer.write(0, log.read("measurements", 0, Span(start, end)), end)
        done.set()

    thread = threading.Thread(target=commit)
    thread.start()
    while not done.is_set():
        assert values(store, "SELECT count(*), count(DISTINCT value) FROM measurements") == [500]
        assert values(store, "SELECT count(DISTINCT value) FROM measurements") == [500]
    thread.join()


def test_a_topic_without_a_table_is_read_from_the_log_within_a_bound(tmp_path: Path) -> None:
    log = ListLog(Topic("hot", SCHEMA))
    log.put("hot", 0, measurements(0, 1000))
    with Store(log, {}) as store:  # type: ignore[arg-type]
        assert values(store, "SELECT count(*) FROM hot") == [1000]
    small = Limits(log_bytes=Size(1000))
    with (
        Store(log, {}, limits=small) as store,
        pytest.raises(QueryError, match="add a delta sink for this topic"),
    ):  # type: ignore[arg-type]
        store.query("SELECT count(*) FROM hot")
    refs = {"hot": DeltaTableRef(str(tmp_path / "none yet"), {}, "late")}
    with Store(log, refs) as store:  # type: ignore[arg-type]
        assert values(store, "SELECT count(*) FROM hot") == [1000]


def test_old_files_and_new_rows_with_grown_structs_stand_in_one_result(tmp_path: Path) -> None:
    def event(**payload: object) -> Rows:
        return pa.RecordBatch.from_arrays(
            [pa.array(["a"]), pa.array([T0], TIMESTAMP), pa.array(["kind/1"]), pa.array([payload])],
            names=["source_id", "timestamp", "event_type", "payload"],
        )

    log = ListLog(Topic("events", EVENTS))
    sink = Delta(path=str(tmp_path), partition_by=("event_type", "year", "month", "day"))
    writer = sink.open(log.topics()["events"], name="bronze")
    for end, rows in enumerate(
        (event(v=1), event(v=2, inner={"x": "q"}), event(inner={"y": [1]}), event(v=2.5, w=True)), 1
    ):
        log.put("events", 0, rows)
        if end <= 2:
            writer.write(0, rows, end)
    with Store(log, {"events": DeltaTableRef(str(tmp_path), {}, "bronze")}) as store:  # type: ignore[arg-type]
        got = store.query(
            "SELECT payload, event_type FROM events ORDER BY payload.v NULLS LAST, payload.w"
        ).table
        assert got.column_names == ["payload", "event_type"]
        assert set(got["event_type"].to_pylist()) == {"kind/1"}
        assert [(p["v"], p["inner"] and p["inner"].get("x"), p["w"]) for p in got["payload"].to_pylist()] == [
            (1.0, None, None), (2.0, "q", None), (2.5, None, True), (None, None, None),
        ]  # fmt: skip
        assert store.query("SELECT * FROM events LIMIT 1").table.column_names[:3] == [
            "source_id",
            "timestamp",
            "received_at",
        ]


# -- the fence -------------------------------------------------------------------------------------

REFUSED = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "FROM '{lake}'",
    'SELECT * FROM "{lake}"',
    "SELECT * FROM read_parquet('{lake}')",
    "SELECT * FROM parquet_scan(['{lake}'])",
    "SELECT * FROM parquet_metadata('{lake}')",
    "SELECT * FROM read_blob('{lake}')",
    "SELECT * FROM glob('/**')",
    "SELECT * FROM read_csv('https://example.com/x.csv')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_json_auto('/etc/passwd')",
    "SELECT * FROM read_duckdb('/tmp/x.db')",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "WITH x AS (FROM read_text('/etc/passwd')) FROM x",
    "SELECT * FROM measurements WHERE value IN (SELECT size FROM read_text('/etc/passwd'))",
    "SELECT * FROM measurements, LATERAL (FROM read_text('/etc/passwd'))",
    "SUMMARIZE FROM read_text('/etc/passwd')",
    "DESCRIBE FROM read_csv('/etc/passwd')",
    "SELECT * FROM query('FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('measurements')",
    "SELECT * FROM json_execute_serialized_sql('{{}}')",
    "SELECT * FROM system.main.read_text('/etc/passwd')",
    "SELECT * FROM arrow_scan(1::POINTER, 2::POINTER, 3::POINTER)",
    "SELECT * FROM pandas_scan(1::POINTER)",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_views()",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM __tail_measurements",
    "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT getenv('HOME')",
    "SELECT current_setting('allowed_directories')",
    "SELECT write_log('x')",
    "SELECT repeat('x', 1000000000)",
    "SELECT range(1000000000)",
    "COPY (SELECT 1) TO '/tmp/out.csv'",
    "COPY measurements TO '{lake}'",
    "EXPORT DATABASE '/tmp/x'",
    "IMPORT DATABASE '/tmp/x'",
    "ATTACH '/tmp/x.db'",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "PRAGMA version",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CREATE TABLE x (a INT)",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET s (TYPE s3)",
    "INSERT INTO measurements VALUES (1)",
    "UPDATE measurements SET value = 1",
    "DELETE FROM measurements",
    "DROP VIEW measurements",
    "TRUNCATE measurements",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW measurements",
    "SELECT 1) UNION ALL (SELECT 2",
    "SELECT 1) LIMIT 1; COPY (SELECT 1) TO '/tmp/x' --",
    "SHOW DATABASES",
    "SHOW ALL TABLES",
    "SHOW VARIABLES",
    "SELECT * FROM (SHOW DATABASES)",
    "",
    ";",
    "-- nothing",
    "selec 1",
    "SELECT '\x00'",
    "SELECT '\ud800'",
    "SELECT * FROM measurements AT (VERSION => 1)",
]


@pytest.mark.parametrize("attack", REFUSED, ids=lambda text: repr(text)[:50])
def test_refused(half: tuple[Store, ListLog], tmp_path: Path, attack: str) -> None:
    lake = next((tmp_path / "my lake" / "measurements").glob("*.parquet"))
    with pytest.raises(QueryError) as refused:
        half[0].query(attack.replace("{lake}", str(lake)).replace("{{}}", "{}"))
    assert "root:" not in str(refused.value)


def test_duckdb_itself_is_closed_even_past_the_first_fence(half: tuple[Store, ListLog]) -> None:
    store, _ = half
    cursor = store._database().cursor()
    for attack in (
        "FROM read_text('/etc/passwd')", "FROM glob('/etc/*')", "ATTACH '/tmp/x.db'", "SET threads = 1", "LOAD httpfs",
        "COPY (SELECT 1) TO '/tmp/headrace-never.csv'",
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"disabled|locked"):
            cursor.execute(attack).fetchall()
    cursor.close()


ALLOWED = [
    ("SELECT 1", 1),
    ("SELECT 1;", 1),
    ("SELECT 1 -- with a comment", 1),
    ("/* ; */ SELECT 1 ;", 1),
    ("VALUES (7)", 7),
    ("FROM measurements SELECT count(*)", 100),
    ("WITH measurements AS (SELECT 1 AS a) SELECT a FROM measurements", 1),
    ("WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 5) SELECT max(x) FROM r", 5),
    ("SELECT count(*) FROM range(10)", 10),
    ("SELECT sum(x) FROM unnest([1, 2]) t(x)", 3),
    ("SELECT a.n FROM (SELECT count(*) AS n FROM measurements) a JOIN (SELECT 100 AS n) b USING (n)", 100),
    ("SELECT column_name FROM (DESCRIBE measurements) LIMIT 1", "sensor_id"),
    ("DESCRIBE measurements", "sensor_id"),
    ("SHOW measurements", "sensor_id"),
    ("SUMMARIZE measurements", "sensor_id"),
    ("SHOW TABLES", "measurements"),
    ("SELECT count(*) FROM sensors", 0),
    (
        "SELECT time_bucket(INTERVAL 1 MINUTE, timestamp)::VARCHAR FROM measurements ORDER BY 1 LIMIT 1",
        "2023-11-14 22:13:00+00",
    ),
    ("SELECT 'a;b'", "a;b"),
]


@pytest.mark.parametrize(("sql", "first"), ALLOWED, ids=[sql[:50] for sql, _ in ALLOWED])
def test_allowed(half: tuple[Store, ListLog], sql: str, first: object) -> None:
    assert values(half[0], sql)[0] == first


def test_an_unknown_table_is_named_with_the_nearest_one(half: tuple[Store, ListLog]) -> None:
    with pytest.raises(
        QueryError,
        match=r"no table 'measurement'; did you mean measurements\? there are measurements, sensors",
    ):
        half[0].query("SELECT * FROM measurement")


def test_rows_time_memory_and_size_of_an_answer_are_bounded(half: tuple[Store, ListLog]) -> None:
    store, log = half
    answer = store.query("SELECT value FROM measurements ORDER BY value", max_rows=10)
    assert answer.truncated
    assert answer.table.column(0).to_pylist() == [float(i) for i in range(10)]
    assert not store.query("SELECT value FROM measurements", max_rows=100).truncated
    with pytest.raises(QueryError, match=r"longer than 0.3 s"):
        store.query("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b", timeout=0.3)
    assert values(store, "SELECT 1") == [1]  # the store is as good as before
    with Store(log, {}, limits=Limits(memory=Size(64 * 2**20), answer_bytes=Size(1000))) as small:  # type: ignore[arg-type]
        for sql, match in (
            ("SELECT array_agg(range) FROM range(50000000)", "more memory than it may use"),
            ("SELECT * FROM range(5000)", "the answer is larger than"),
        ):
            with pytest.raises(QueryError, match=match):
                small.query(sql)


def test_a_mistake_in_the_sql_says_where(half: tuple[Store, ListLog]) -> None:
    with pytest.raises(QueryError, match="valeu"):
        half[0].query("SELECT valeu FROM measurements")
    with pytest.raises(QueryError, match=r"(?i)parameter"):
        half[0].query("SELECT ? + 1")


# -- pages -----------------------------------------------------------------------------------------


def pages(store: Store, **options: object) -> list[list[float]]:
    found, cursor = [], None
    for _ in range(200):
        page = store.data("measurements", cursor=cursor, **options)  # type: ignore[arg-type]
        found.append(page.table["value"].to_pylist())
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("pages never end")


def test_data_is_the_newest_first(half: tuple[Store, ListLog]) -> None:
    store, _ = half
    page = store.data("measurements", limit=3)
    assert page.table["value"].to_pylist() == [99.0, 98.0, 97.0]
    assert page.table.column_names == SCHEMA.names
    assert store.data("measurements", limit=3, offset=2).table["value"].to_pylist() == [97.0, 96.0, 95.0]


def test_data_filters_by_source_metric_and_time(half: tuple[Store, ListLog]) -> None:
    store, _ = half
    got = store.data(
        "measurements", source_id="s1", metric="t", start_us=T0 + 11_000_000, end_us=T0 + 41_000_000
    )
    assert got.table["value"].to_pylist() == [31.0, 21.0, 11.0]
    assert got.next_cursor is None
    assert store.data("measurements", source_id="'; DROP TABLE x --").table.num_rows == 0


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_by_cursor_give_every_row_once_also_when_rows_come_meanwhile(
    half: tuple[Store, ListLog], newest_first: bool
) -> None:
    store, log = half
    first = store.data("measurements", limit=7, newest_first=newest_first)
    log.put(
        "measurements", 0, measurements(500, 3) if newest_first else measurements(-3, 3)
    )  # before the first page
    rest = pages(store, limit=7, newest_first=newest_first) if first.next_cursor is None else []
    cursor, got = first.next_cursor, first.table["value"].to_pylist()
    while cursor:
        page = store.data("measurements", limit=7, cursor=cursor, newest_first=newest_first)
        got += page.table["value"].to_pylist()
        cursor = page.next_cursor
    assert not rest
    expected = [float(i) for i in range(100)]
    assert got == (expected[::-1] if newest_first else expected)


def test_pages_pass_through_many_equal_times_and_equal_rows(tmp_path: Path) -> None:
    log = ListLog(Topic("measurements", SCHEMA))
    same = measurements(0, 10, step_us=0)
    for _ in range(3):
        log.put("measurements", 0, same)
    with Store(log, {}) as store:  # type: ignore[arg-type]
        got = pages(store, limit=4)
    assert sorted(value for page in got for value in page) == sorted([float(i) for i in range(10)] * 3)


def test_pages_pass_through_more_equal_rows_than_two_pages_hold(tmp_path: Path) -> None:
    log = ListLog(Topic("measurements", SCHEMA))
    log.put("measurements", 0, measurements(1, 2))
    for _ in range(11):
        log.put("measurements", 0, measurements(0, 1))
    with Store(log, {}) as store:  # type: ignore[arg-type]
        got = pages(store, limit=3)
    assert [value for page in got for value in page] == [2.0, 1.0, *[0.0] * 11]


@pytest.mark.parametrize(
    "cursor", ["x", "W10", "eyJhIjoxfQ", "WyJvdGhlciIsdHJ1ZSwxLDEsMV0", "ÿ", "a" * 10_000]
)
def test_a_cursor_that_is_none_is_refused(half: tuple[Store, ListLog], cursor: str) -> None:
    with pytest.raises(QueryError, match="begin again without one"):
        half[0].data("measurements", cursor=cursor)


def test_data_says_what_it_cannot_do(half: tuple[Store, ListLog]) -> None:
    store, log = half
    log._topics["events"] = Topic("events", EVENTS)
    with pytest.raises(
        QueryError, match="events can't be filtered by metric: its columns are source_id, timestamp"
    ):
        store.data("events", metric="t")
    with pytest.raises(QueryError, match="no table 'evnts'; did you mean events"):
        store.data("evnts")
    for bad in (0, 100_001):
        with pytest.raises(QueryError, match="limit must be"):
            store.data("measurements", limit=bad)
    with pytest.raises(QueryError, match="offset must be"):
        store.data("measurements", offset=-1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    cut=st.integers(0, 60),
    limit=st.integers(1, 9),
    newest_first=st.booleans(),
    bounds=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_pages_agree_with_sorting_a_list(
    tmp_path_factory: pytest.TempPathFactory,
    seconds: list[int],
    cut: int,
    limit: int,
    newest_first: bool,
    bounds: tuple[int, int],
) -> None:
    path = tmp_path_factory.mktemp("lake")
    n = len(seconds)
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array(["s"] * n), pa.array(["m"] * n), pa.array([float(i) for i in range(n)]),
            pa.array([T0 + s * 1_000_000 for s in seconds], TIMESTAMP),
        ],
        schema=SCHEMA,
    )  # fmt: skip
    log = ListLog(Topic("measurements", SCHEMA))
    log.put("measurements", 0, rows)
    writer = Delta(path=str(path)).open(log.topics()["measurements"], name="x")
    for start in range(0, min(cut, n), 7):  # many small files with times across each other
        end = min(start + 7, cut, n)
        writer.write(0, rows.slice(start, end - start), end)
    start_us, end_us = T0 + bounds[0] * 1_000_000, T0 + bounds[1] * 1_000_000
    with Store(log, {"measurements": DeltaTableRef(str(path), {}, "x")}) as store:  # type: ignore[arg-type]
        got = [
            v
            for page in pages(store, limit=limit, newest_first=newest_first, start_us=start_us, end_us=end_us)
            for v in page
        ]
    expected = {float(i) for i, s in enumerate(seconds) if bounds[0] <= s < bounds[1]}
    assert set(got) == expected
    assert len(got) == len(expected)
    times = [seconds[int(v)] for v in got]
    assert times == sorted(times, reverse=newest_first)


# -- export and JSON -------------------------------------------------------------------------------


def test_export_in_every_format(half: tuple[Store, ListLog], tmp_path: Path) -> None:
    store, _ = half
    bounds = {"start_us": T0, "end_us": T0 + 10_000_000}
    expected = [float(i) for i in range(10)]
    (tmp_path / "x.parquet").write_bytes(b"".join(store.export("measurements", "parquet", **bounds)))
    assert sorted(pq.read_table(tmp_path / "x.parquet")["value"].to_pylist()) == expected
    arrow = pa.ipc.open_stream(b"".join(store.export("measurements", "arrow", **bounds))).read_all()
    assert sorted(arrow["value"].to_pylist()) == expected
    lines = b"".join(store.export("measurements", "ndjson", **bounds)).splitlines()
    assert len(lines) == 10
    assert b'"timestamp":"2023-11-14T22:13:' in lines[0]
    csv = b"".join(store.export("measurements", "csv", **bounds)).decode().splitlines()
    assert csv[0] == '"sensor_id","metric","value","timestamp"'
    assert len(csv) == 11
    empty = b"".join(store.export("measurements", "csv", 0, 1)).decode()
    assert empty == '"sensor_id","metric","value","timestamp"\n'


def test_json_says_what_the_columns_hold() -> None:
    table = pa.table(
        {
            "at": pa.array([0, 1_700_000_000_000_001, None], TIMESTAMP),
            "whole": pa.array([0, 1_000_000, -1_000_000], TIMESTAMP),
            "v": pa.array([math.nan, math.inf, 1.5]),
            "raw": pa.array([b"\xff\x00", None, b""]),
            "p": pa.array([{"t": math.nan, "at": 0, "l": [1.0, math.nan]}, None, {"t": 2.0, "at": None, "l": []}],
                          pa.struct([("t", pa.float64()), ("at", TIMESTAMP), ("l", pa.list_(pa.float64()))])),
            "d": pa.array(["a", None, "b"]).dictionary_encode(),
            "n": pa.array([2**60, None, 0]),
        }
    )  # fmt: skip
    for rows in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)]), table.slice(0)):
        got = to_json_rows(rows)
        assert got[0] == {
            "at": "1970-01-01T00:00:00.000000Z", "whole": "1970-01-01T00:00:00Z", "v": None, "raw": "/wA=", "d": "a",
            "p": {"t": None, "at": "1970-01-01T00:00:00Z", "l": [1.0, None]}, "n": 2**60,
        }  # fmt: skip
        assert got[1] == {
            "at": "2023-11-14T22:13:20.000001Z", "whole": "1970-01-01T00:00:01Z", "v": None, "raw": None, "p": None,
            "d": None, "n": None,
        }  # fmt: skip
    assert to_json_rows(table.slice(1, 1)) == [to_json_rows(table)[1]]
    assert json_lines(table).count(b"\n") == 3
    assert json_array(table.slice(0, 0)) == b"[]"
    far = pa.table({"at": pa.array([2**62, -(2**62)], TIMESTAMP)})
    assert to_json_rows(far)[0]["at"] == str(2**62)
