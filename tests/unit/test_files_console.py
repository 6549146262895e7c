"""Sinks for people and other programs: files and the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import RetryableError
from headrace.model import TIMESTAMP, Topic
from headrace.sinks.console import Console
from headrace.sinks.files import Files

SCHEMA = pa.schema(
    [("n", pa.int64()), ("timestamp", TIMESTAMP), ("payload", pa.struct([("t", pa.float64())]))]
)
TOPIC = Topic("events", SCHEMA)


def rows(start: int, end: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{"n": n, "timestamp": n, "payload": {"t": n / 2}} for n in range(start, end)], SCHEMA
    )


def names(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def test_file_names_tell_the_offsets(tmp_path: Path) -> None:
    writer = Files(path=str(tmp_path)).open(TOPIC, name="archive")
    writer.write(3, rows(100, 110), 110)  # the first rows left the log before the sink was there
    writer.write(3, rows(110, 113), 115)  # two rows went to the dead letters
    writer.write(3, rows(115, 116), 116)
    assert names(tmp_path / "events") == [
        "3/00000000000000000100-00000000000000000110.parquet",
        "3/00000000000000000110-00000000000000000115.parquet",
        "3/00000000000000000115-00000000000000000116.parquet",
    ]
    again = Files(path=str(tmp_path)).open(TOPIC, name="archive")
    assert again.committed(3) == 116
    again.write(3, rows(110, 116), 116)
    assert len(names(tmp_path / "events")) == 3
    found = [
        pq.ParquetFile(tmp_path / "events" / name).read()["n"].to_pylist()
        for name in names(tmp_path / "events")
    ]
    assert [n for numbers in found for n in numbers] == [*range(100, 113), 115]


def test_half_written_files_are_removed_and_others_left_alone(tmp_path: Path) -> None:
    writer = Files(path=str(tmp_path / "{topic}-archive")).open(TOPIC, name="archive")
    writer.write(0, rows(0, 2), 2)
    folder = tmp_path / "events-archive" / "0"
    (folder / f".{'0' * 32}.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    assert Files(path=str(tmp_path / "{topic}-archive")).open(TOPIC, name="archive").committed(0) == 2
    assert [p.name for p in sorted(folder.iterdir())] == [
        "00000000000000000000-00000000000000000002.parquet", "notes.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_csv_and_ndjson_can_be_read_by_others(tmp_path: Path, compression: str) -> None:
    for form in ("csv", "ndjson"):
        sink = Files(path=str(tmp_path), format=form, compression=compression)  # type: ignore[arg-type]
        sink.open(TOPIC, name="x").write(0, rows(0, 3), 3)
    texts = {}
    for name in names(tmp_path / "events"):
        with pa.input_stream(
            str(tmp_path / "events" / name), compression=None if compression == "none" else compression
        ) as stream:
            texts["csv" if ".csv" in name else "ndjson"] = stream.read().decode()
    assert list(csv.DictReader(io.StringIO(texts["csv"])))[2] == {
        "n": "2", "timestamp": "1970-01-01T00:00:00.000002Z", "payload": '{"t":1.0}',
    }  # fmt: skip
    assert (
        texts["ndjson"].splitlines()[2]
        == '{"n":2,"timestamp":"1970-01-01T00:00:00.000002Z","payload":{"t":1.0}}'
    )


def test_object_storage_goes_through_the_same_class(tmp_path: Path) -> None:
    """`file://` is a URL like `s3://`, so it takes the way of the object stores."""
    sink = Files(path=f"file://{tmp_path}/away")
    (tmp_path / "away" / "events" / "0").mkdir(parents=True)
    sink.open(TOPIC, name="x").write(0, rows(0, 3), 3)
    assert sink.open(TOPIC, name="x").committed(0) == 3
    assert sink.open(TOPIC, name="x").committed(1) == 0


def test_a_place_that_cannot_be_written_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sink = Files(path=str(tmp_path / "file"))
    with pytest.raises(RetryableError, match="can't be written to"):
        sink.connect()
    with pytest.raises(RetryableError, match=r"writing events\[0\] up to 3"):
        sink.open(TOPIC, name="x").write(0, rows(0, 3), 3)
    Files(path=str(tmp_path / "new")).connect()
    assert names(tmp_path / "new") == []


def test_console_prints_json_lines_or_a_table_within_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    Console(limit=0).open(TOPIC, name="x").write(0, rows(0, 2), 2)
    assert (
        capsys.readouterr().out.splitlines()[1]
        == '{"n":1,"timestamp":"1970-01-01T00:00:00.000001Z","payload":{"t":0.5}}'
    )
    Console(limit=0, to="stderr", format="table").open(TOPIC, name="x").write(0, rows(9, 11), 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["n", "timestamp", "payload"]
    assert lines[1].startswith(" 9  1970-")
    writer = Console(limit=3).open(TOPIC, name="x")
    writer.write(0, rows(0, 1_000), 1_000)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_console_table_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    batch = pa.RecordBatch.from_pylist([{"s": "\x1b[31mred\n", "long": "x" * 100}])
    Console(limit=0, format="table").open(Topic("t", batch.schema), name="x").write(0, batch, 1)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert "x" * 41 not in out
