"""Content encodings, CSV, Arrow streams and log lines."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.formats import FormatFaultError, Naming, TooLargeError, decode, decompress, parse_lines
from headrace.model import EVENTS, TIMESTAMP, Topic, open_struct

NOW = 1_714_564_900_000_000
EVENTS_TOPIC = Topic("events", EVENTS)
KNOWN = Topic(
    "events",
    EVENTS.set(
        4,
        open_struct(
            [
                pa.field("temperature", pa.float64()),
                pa.field("label", pa.string()),
                pa.field("on", pa.bool_()),
            ]
        ),
    ),
)
DECLARED = Topic(
    "t",
    pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("timestamp", TIMESTAMP),
            pa.field("x", pa.float64()),
        ]
    ),
)


def zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(body)


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


# -- content encodings -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=20_000))
def test_what_was_compressed_comes_back(body: bytes) -> None:
    for encoding, packed in [
        ("gzip", gzip.compress(body)),
        ("x-gzip", gzip.compress(body[:9]) + gzip.compress(body[9:])),
        ("deflate", zlib.compress(body)),
        ("zstd", zstd(body)),
        ("gzip, zstd", zstd(gzip.compress(body))),
        ("identity", body),
        ("", body),
    ]:
        assert decompress(packed, encoding, max_bytes=20_000) == body
    if body:
        assert decompress(raw_deflate(body), "deflate", max_bytes=20_000) == body
        assert decompress(zstd(body) + zstd(b"more"), "zstd", max_bytes=30_000) == body + b"more"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zstd])
def test_a_bomb_is_refused_before_it_fills_the_memory(pack: Any) -> None:
    encoding = {gzip.compress: "gzip", zlib.compress: "deflate", zstd: "zstd"}[pack]
    with pytest.raises(TooLargeError):
        decompress(pack(bytes(50_000_000)), encoding, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"plain", "gzip", 400),
        (b"plain text", "deflate", 400),
        (b"plain", "zstd", 400),
        (b"", "gzip", 400),
        (b"", "zstd", 400),
        (gzip.compress(b"x" * 999)[:-9], "gzip", 400),
        (zstd(b"x" * 99_999)[:-3], "zstd", 400),
        (b"plain", "br", 415),
        (b"plain", "gzip, gzip, gzip, gzip", 415),
        (b"plain", "identity", 413),
    ],
)
def test_broken_and_unknown_encodings_say_so(body: bytes, encoding: str, status: int) -> None:
    with pytest.raises(FormatFaultError) as caught:
        decompress(body, encoding, max_bytes=3 if status == 413 else 10_000_000)
    assert caught.value.status == status


def test_many_tiny_members_take_no_quadratic_time() -> None:
    assert decompress(gzip.compress(b"x") * 20_000, "gzip", max_bytes=20_000) == b"x" * 20_000


# -- CSV -------------------------------------------------------------------------------------------


def csv(body: str | bytes, topic: Topic = KNOWN, **options: Any) -> Any:
    body = body.encode() if isinstance(body, str) else body
    return decode(body, media_type="text/csv", topic=topic, now_us=NOW, **options)


def payloads(decoded: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row["payload"].items() if v is not None} for row in decoded.rows.to_pylist()]


@pytest.mark.parametrize(
    "text",
    [
        "sensor_id,temperature,site,n\na,1,north,1\nb,2.5,,x\n",
        'sensor_id;temperature;site;n\r\na;1;"north";1\r\n"b";2.5;;x',
    ],
)
def test_csv_columns_take_the_types_of_their_fields(text: str) -> None:
    decoded = csv(text)
    assert decoded.rejects == []
    assert decoded.rows["source_id"].to_pylist() == ["a", "b"]
    assert payloads(decoded) == [
        {"temperature": 1.0, "site": "north", "n": "1"},
        {"temperature": 2.5, "n": "x"},
    ]


def test_bad_csv_rows_are_refused_alone_with_their_bytes() -> None:
    lines = [
        b"sourceId,timestamp,temperature,label,on",
        b"a,2024-05-01T12:00:00Z,1,x,true",
        b"b,1714564800",
        b"c,soon,1,x,",
        b",1714564800,1,x,",
        b"e,,hot,x,",
        b"f,,NaN,x,",
        b"g,,1,x,maybe",
        b'h,,1,"x""y\nz",FALSE',
        b"i,,1,\xff,",
        b'j,,1,"x"y,',
        b"k,2024-06-01T12:00:00Z,1,x,",
    ]
    decoded = csv(b"\n".join(lines))
    assert [(reject.raw, reject.code, reject.source_id) for reject in decoded.rejects] == [
        (lines[2], "bad_csv_row", None),
        (lines[3], "bad_timestamp", "c"),
        (lines[4], "missing_field", None),
        (lines[5], "wrong_type", "e"),
        (lines[6], "out_of_range", "f"),
        (lines[7], "wrong_type", "g"),
        (lines[9], "bad_encoding", None),
        (lines[10], "bad_csv_row", None),
        (lines[11], "future_timestamp", "k"),
    ]
    assert payloads(decoded) == [
        {"temperature": 1.0, "label": "x", "on": True},
        {"temperature": 1.0, "label": 'x"y\nz', "on": False},
    ]
    assert (decoded.accepted, decoded.total) == (2, 11)


def test_csv_into_declared_columns() -> None:
    decoded = csv("id,x,note\n1,2,n\n,3,n\n1.5,3,n\n99999999999999999999,1,n\n", DECLARED)
    assert decoded.rows.to_pylist() == [{"id": 1, "timestamp": None, "x": 2.0, "note": "n"}]
    assert [reject.code for reject in decoded.rejects] == ["missing_field", "out_of_range", "out_of_range"]


@pytest.mark.parametrize(
    "body", ["temperature,label\n1,x\n", "sourceId,,x\na,1,2\n", "sourceId,x,x\na,1,2", 'sourceId,"x\na,1']
)
def test_an_unusable_csv_header_refuses_the_body(body: str) -> None:
    with pytest.raises(FormatFaultError):
        csv(body)


def test_csv_of_a_header_only_has_no_rows() -> None:
    decoded = csv("sourceId,x\n")
    assert (decoded.rows, decoded.rejects, decoded.total) == (None, [], 0)


def test_naming_gives_rows_a_source_and_a_time() -> None:
    naming = Naming(default_source="file.csv", time_key="at")
    decoded = csv("at,temperature\n1714564800,1\n", naming=naming)
    row = decoded.rows.to_pylist()[0]
    assert (row["source_id"], row["timestamp"].timestamp()) == ("file.csv", 1714564800)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text('ab,"\n é', min_size=1, max_size=4), st.floats(-9, 9), st.text(max_size=4)),
        min_size=1,
        max_size=8,
    )
)
def test_csv_written_by_python_comes_back(rows: list[tuple[str, float, str]]) -> None:
    import csv as writer_module

    rows = [(a, b, c.replace("\r", "").replace("\0", "")) for a, b, c in rows]
    out = io.StringIO()
    writer = writer_module.writer(out)
    writer.writerow(["sourceId", "temperature", "label"])
    writer.writerows(rows)
    decoded = csv(out.getvalue())
    assert decoded.rejects == []
    assert decoded.rows["source_id"].to_pylist() == [a for a, _, _ in rows]
    assert payloads(decoded) == [{"temperature": b, **({"label": c} if c else {})} for _, b, c in rows]


# -- Arrow -----------------------------------------------------------------------------------------


def arrow(table: pa.Table | pa.RecordBatch, topic: Topic = KNOWN, **options: Any) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write(table)
    body = sink.getvalue().to_pybytes()
    return decode(body, media_type="application/vnd.apache.arrow.stream", topic=topic, now_us=NOW, **options)


def test_arrow_columns_become_events() -> None:
    table = pa.table(
        {
            "sensor_id": pa.array(["a", "b", "a"]).dictionary_encode(),
            "timestamp": pa.array([1714564800, 1714564801, None], pa.timestamp("s")),
            "temperature": pa.array([1, 2, 3], pa.int32()),
            "tags": pa.array([["x"], [], None], pa.list_(pa.string())),
            "gps": pa.array([{"lat": 1}, {"lat": 2}, None], pa.struct([("lat", pa.int8())])),
        }
    )
    decoded = arrow(table)
    assert decoded.rejects == []
    assert payloads(decoded) == [
        {"temperature": 1.0, "tags": '["x"]', "gps": {"lat": 1.0}},
        {"temperature": 2.0, "tags": "[]", "gps": {"lat": 2.0}},
        {"temperature": 3.0},
    ]
    assert [t.timestamp() for t in decoded.rows["timestamp"].to_pylist()] == [
        1714564800,
        1714564801,
        NOW / 1e6,
    ]


def test_bad_arrow_rows_are_refused_alone() -> None:
    table = pa.table(
        {
            "source_id": ["a", None, "", "d", "e", "f"],
            "timestamp": pa.array([NOW, NOW, NOW, -5, NOW + 10**9, NOW], TIMESTAMP),
            "payload": pa.array([{"temperature": t} for t in (1.0, 1.0, 1.0, 1.0, 1.0, float("nan"))]),
        }
    )
    decoded = arrow(table)
    assert [(r.row, r.code) for r in decoded.rejects] == [
        (1, "missing_field"), (2, "missing_field"), (3, "bad_timestamp"), (4, "future_timestamp"), (5, "out_of_range"),
    ]  # fmt: skip
    assert decoded.accepted == 1
    assert b'"source_id":"d"' in decoded.rejects[2].raw


def test_rows_that_went_out_as_arrow_come_back_the_same() -> None:
    rows = csv("sourceId,timestamp,temperature,label\na,1714564800,1,x\n").rows
    assert arrow(rows).rows.equals(rows)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"source_id": ["a"], "payload": [{"temperature": "hot"}]}),
        pa.table({"source_id": ["a"], "payload": ["x"]}),
        pa.table({"temperature": [1.0]}),
        pa.table({"source_id": [1.5], "temperature": [1.0]}),
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["source_id", "source_id"]),
    ],
)
def test_arrow_columns_that_do_not_fit_refuse_the_body(table: pa.Table) -> None:
    with pytest.raises(FormatFaultError):
        arrow(table)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_arrow_streams_never_crash(data: st.DataObject) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"source_id": ["a", "b"] * 9, "temperature": np.arange(18.0), "label": ["é"] * 18})
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write(table)
    body = bytearray(sink.getvalue().to_pybytes())
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(8, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(
            bytes(body), media_type="application/vnd.apache.arrow.stream", topic=KNOWN, now_us=NOW
        )
    except FormatFaultError:
        return
    assert decoded.accepted + len(decoded.rejects) == decoded.total


# -- log lines -------------------------------------------------------------------------------------

COMBINED = b'1.2.3.4 - ann [01/May/2024:12:00:00 +0200] "GET /x?a=1 HTTP/1.1" 404 512 "-" "curl/8 (\\"x\\")"'


def test_access_log_lines() -> None:
    found = parse_lines(
        [COMBINED, b"garbage", b'::1 - - [01/May/2024:12:00:01 +0200] "\\x16\\x03" 400 - "-" "-" 0.003'],
        "combined",
        now_us=NOW,
    )
    columns = {name: array.to_pylist() for name, array in found.columns.items()}
    assert found.columns["status"].type == found.columns["bytes"].type == pa.int64()
    assert columns["status"] == [404, None, 400]
    assert columns["bytes"] == [512, None, None]
    assert columns["path"] == ["/x?a=1", None, None]
    assert columns["request"] == [None, None, "\\x16\\x03"]
    assert columns["rest"] == [None, None, "0.003"]
    assert pc.cast(found.columns["timestamp"], pa.int64()).to_pylist()[0] == 1714557600_000000
    assert {row: refused.code for row, refused in found.refused.items()} == {1: "no_match"}


def test_syslog_lines_get_the_year_that_is_nearest() -> None:
    lines = [
        b"May  1 12:00:00 host sshd[42]: Failed password",
        b"<13>Dec 31 23:59:59 host cron: x",
        b"2024-05-01T12:00:00Z h app: y",
    ]
    found = parse_lines(lines[:2], "syslog", now_us=NOW)
    assert [t.isoformat() for t in found.columns["timestamp"].to_pylist()] == [
        "2024-05-01T12:00:00+00:00",
        "2023-12-31T23:59:59+00:00",
    ]
    assert found.columns["pid"].to_pylist() == [42, None]
    assert found.columns["message"].to_pylist() == ["Failed password", "x"]
    assert parse_lines(lines[2:], "syslog", now_us=NOW).columns["timestamp"].to_pylist() == [
        "2024-05-01T12:00:00Z"
    ]


def test_logfmt_lines() -> None:
    found = parse_lines(
        [b'level=info msg="a \\"b\\"" duration=1.5 ok', b"nothing here", b"level=warn"], "logfmt", now_us=NOW
    )
    assert {name: array.to_pylist() for name, array in found.columns.items()} == {
        "level": ["info", None, "warn"], "msg": ['a "b"', None, None], "duration": [1.5, None, None], "ok": ["true", None, None],
    }  # fmt: skip
    assert list(found.refused) == [1]


def test_own_patterns_need_named_groups() -> None:
    assert parse_lines([b"x 5"], r"x (?P<size>\d+)", now_us=NOW).columns["size"].to_pylist() == [5]
    for bad in ("x (\\d+)", "(?P<x", "nginx"):
        with pytest.raises(FormatFaultError):
            parse_lines([b"x"], bad, now_us=NOW)
