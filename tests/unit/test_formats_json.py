"""JSON bodies: the law that both paths agree, and a table of edges."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.formats import CODES, Decoded, FormatFaultError, Naming, TooLargeError, decode
from headrace.model import EVENTS, TIMESTAMP, Topic, open_struct

NOW = 1_714_564_900_000_000
EVENT = '{"sourceId":"a","timestamp":"2024-05-01T12:00:00Z","payload":{"temperature":21.5}}'


def topic(*payload: pa.Field, policy: Any = "evolve", **options: Any) -> Topic:
    schema = EVENTS.set(EVENTS.get_field_index("payload"), open_struct(payload))
    return Topic("events", schema, on_new_field=policy, **options)


KNOWN = topic(
    pa.field("temperature", pa.float64()),
    pa.field("label", pa.string()),
    pa.field("on", pa.bool_()),
    pa.field("xs", pa.list_(pa.float64())),
    pa.field("gps", pa.struct([pa.field("lat", pa.float64()), pa.field("lon", pa.float64())])),
)
DECLARED = Topic(
    "orders",
    pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("timestamp", TIMESTAMP),
            pa.field("name", pa.string()),
            pa.field("price", pa.float64()),
        ]
    ),
)


def read(
    body: bytes | str, to: Topic = KNOWN, media_type: str = "application/x-ndjson", **options: Any
) -> Decoded:
    body = body.encode() if isinstance(body, str) else body
    return decode(body, media_type=media_type, topic=to, now_us=NOW, **options)


def assert_paths_agree(body: bytes, to: Topic, media_type: str, **options: Any) -> Decoded:
    fast = read(body, to, media_type, **options)
    slow = read(body, to, media_type, fast=False, **options)
    assert fast.rejects == slow.rejects
    assert (fast.accepted, fast.total) == (slow.accepted, slow.total)
    assert fast.accepted + len(fast.rejects) == fast.total
    assert {reject.code for reject in fast.rejects} <= CODES.keys()
    if slow.rows is None:
        assert fast.rows is None
    else:
        assert fast.rows is not None
        assert fast.rows.schema.equals(slow.rows.schema)
        assert fast.rows.equals(slow.rows)
        fast.rows.validate(full=True)
    return fast


# -- the law ---------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 2**53 + 1, 1.5, 10**400]),
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "12", "null", "é\U0001f600", "x" * 201]))
SCALARS = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
PAYLOAD = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(st.floats(-50, 50), VALUES),
        "label": st.one_of(st.text(max_size=5), VALUES),
        "on": st.one_of(st.booleans(), VALUES),
        "xs": st.one_of(st.lists(st.floats(-1, 1), max_size=3), VALUES),
        "gps": st.one_of(
            st.fixed_dictionaries({}, optional={"lat": NUMBERS, "lon": NUMBERS, "alt": NUMBERS}), VALUES
        ),
        "fresh": VALUES,
        "sensor_id": SCALARS,
    },
)
TIMES = st.one_of(
    st.sampled_from(
        [
            "2024-05-01T12:00:00Z", "2024-05-01T12:00:00.123456789+05:30", "2024-05-01 12:00:00", "2024-05-01", "20240501",
            "1714564800", "1969-12-31T23:59:59Z", "2263-01-01T00:00:00Z", "9999-12-31T00:00:00Z", "2024-05-01T13:00:00Z",
            "2024-02-30T00:00:00Z", "24:00", "", 1714564800, 1714564800123, 1714564800123456, 1714564800123456789,
            1714564800.25, -1, 0, 10**30, 1e300, True, None, [], {},
        ]
    ),
    SCALARS,
)  # fmt: skip
EVENT_ROWS = st.one_of(
    st.fixed_dictionaries(
        {"sourceId": st.one_of(st.sampled_from(["a", "b", 7]), SCALARS), "timestamp": st.sampled_from(["2024-05-01T12:00:00Z", 1714564800]), "payload": PAYLOAD},
        optional={"type": SCALARS, "received_at": VALUES, "extra": VALUES, "source_id": SCALARS},
    ),
    st.fixed_dictionaries({"sensor_id": st.sampled_from(["a", "b"]), "temperature": st.floats(-50, 50)}, optional={"timestamp": TIMES, "label": TEXTS, "event_type": SCALARS}),
    st.fixed_dictionaries({}, optional={"sourceId": SCALARS, "sensor_id": SCALARS, "timestamp": TIMES, "payload": st.one_of(PAYLOAD, VALUES), "fresh": VALUES}),
)  # fmt: skip
ORDER_ROWS = st.fixed_dictionaries(
    {"id": st.one_of(st.integers(0, 99), SCALARS)},
    optional={
        "timestamp": TIMES,
        "name": SCALARS,
        "price": st.one_of(st.floats(0, 9), VALUES),
        "fresh": VALUES,
    },
)


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


BROKEN = st.sampled_from(
    [
        b"", b"{", b"}", b"null", b"[1]", b"[", b"]", b'"x"', b'{"sourceId":"a","payload":{"temperature":NaN}}',
        b'{"sourceId":"a","payload":{"label":"\\ud800"}}', b'{"sourceId":"a","payload":{"label":"\xff"}}',
        b'{"sourceId":"a","payload":{"temperature":1e999}}', b'{"sourceId":"a"} {"sourceId":"b"}', b'{"id":1}{"id":2}',
        b'{"sourceId":"a","payload":{}', b'{"sourceId":"a","sourceId":"b","payload":{"on":1,"on":true}}', b"\x00", b"  \r",
        b'{"sourceId":"a","payload":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}", b'{"id":1.0}', b'{"id":NaN}', b"# note",
        b'{"sourceId":"a","payload":{"x":"a\tb"}}', b'{"payload":{"a":1},"sourceId":"\\u0061"}', b"{}", b"{\n",
    ]
)  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn, rows: st.SearchStrategy[Any]) -> list[bytes]:
    """At least as many rows as the fast path starts at: a few drawn ones among many of one form."""
    common = dump(draw(rows))
    strange = draw(st.lists(st.one_of(rows.map(dump), BROKEN), max_size=12))
    lines = [common] * draw(st.sampled_from([0, 60]))
    for line in strange:
        lines.insert(draw(st.integers(0, len(lines))), line)
    return lines


LAW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@LAW
@given(
    bodies(EVENT_ROWS),
    st.sampled_from(["evolve", "freeze", "discard"]),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_both_paths_read_the_same_from_lines_of_events(lines: list[bytes], policy: Any, end: bytes) -> None:
    body = end.join(lines)
    if body.strip(b" \t\r\n\0"):
        to = Topic("events", KNOWN.schema, on_new_field=policy)
        decoded = assert_paths_agree(body, to, "application/x-ndjson")
        assert decoded.total == sum(1 for line in body.split(b"\n") if line.strip(b" \t\r\n"))


@LAW
@given(bodies(EVENT_ROWS), st.sampled_from(["evolve", "freeze", "discard"]))
def test_both_paths_read_the_same_from_an_array(rows: list[bytes], policy: Any) -> None:
    assert_paths_agree(
        b"[" + b" , ".join(rows) + b"]",
        Topic("events", KNOWN.schema, on_new_field=policy),
        "application/json",
    )


@LAW
@given(bodies(ORDER_ROWS), st.sampled_from(["evolve", "freeze", "discard"]))
def test_both_paths_read_the_same_for_declared_columns(lines: list[bytes], policy: Any) -> None:
    body = b"\n".join(lines)
    if body.strip(b" \t\r\n\0"):
        assert_paths_agree(
            body, Topic("orders", DECLARED.schema, on_new_field=policy), "application/x-ndjson"
        )


@LAW
@given(bodies(EVENT_ROWS))
def test_both_paths_read_the_same_into_an_empty_topic(lines: list[bytes]) -> None:
    body = b"\n".join(lines)
    if body.strip(b" \t\r\n\0"):
        naming = Naming(source_keys=("device", "sourceId"), time_key="ts", default_source="nobody")
        assert_paths_agree(body, topic(), "application/x-ndjson", naming=naming, max_depth=4)


# -- edges -----------------------------------------------------------------------------------------


def one(text: str | bytes, to: Topic = KNOWN, **options: Any) -> dict[str, Any]:
    """The only row of a body, without nulls; both paths, alone and among others."""
    raw = text.encode() if isinstance(text, str) else text
    for body in (raw, b"\n".join([raw] * 60)):
        decoded = assert_paths_agree(body, to, "application/x-ndjson", **options)
        assert decoded.rejects == ()
    assert decoded.rows is not None
    row = decoded.rows.slice(59, 1).to_pylist()[0]
    return {name: value for name, value in row.items() if value is not None}


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ('{"sensor_id":"a","temperature":21}', {"temperature": 21.0}),
        ('{"source_id":"a","payload":{"temperature":9007199254740993}}', {"temperature": 9007199254740992.0}),
        ('{"sourceId":"a","payload":{"temperature":null}}', {}),
        ('{"sourceId":"a","payload":{}}', {}),
        ('{"sourceId":"a","payload":{"label":5}}', {"label": "5"}),
        ('{"sourceId":"a","payload":{"label":true}}', {"label": "true"}),
        ('{"sourceId":"a","payload":{"label":[1,{"x":"é"}]}}', {"label": '[1,{"x":"é"}]'}),
        ('{"sourceId":"a","payload":{"xs":[1,2.5,null]}}', {"xs": [1.0, 2.5, None]}),
        ('{"sourceId":"a","payload":{"new":[1,"x"]}}', {"new": '[1,"x"]'}),
        ('{"sourceId":"a","payload":{"new":{"deep":{"x":1}}}}', {"new": {"deep": {"x": 1.0}}}),
        (
            '{"sourceId":"a","payload":{"gps":{"lat":1,"alt":2}}}',
            {"gps": {"lat": 1.0, "lon": None, "alt": 2.0}},
        ),
        ('{"sourceId":"a","payload":{"new":{}}}', {}),
    ],
)
def test_payload_values_take_the_type_of_their_field(body: str, payload: dict[str, Any]) -> None:
    found = one(body)["payload"]
    assert {name: value for name, value in found.items() if value is not None} == payload


@pytest.mark.parametrize(
    ("time", "us"),
    [
        ('"2024-05-01T12:00:00Z"', 1714564800_000000),
        ('"2024-05-01T12:00:00"', 1714564800_000000),
        ('"2024-05-01T17:30:00.123456789+05:30"', 1714564800_123456),
        ('"1714564800"', 1714564800_000000),
        ("1714564800", 1714564800_000000),
        ("1714564800.5", 1714564800_500000),
        ("1714564800123", 1714564800_123000),
        ("1714564800123456", 1714564800_123456),
        ("1714564800123456789", 1714564800_123456),
        ("null", NOW),
        ("0", 0),
    ],
)
def test_times_are_read_in_every_usual_form(time: str, us: int) -> None:
    row = one(f'{{"sourceId":"a","timestamp":{time},"payload":{{"temperature":1}}}}')
    assert round(row["timestamp"].timestamp() * 1e6) == us
    assert round(row["received_at"].timestamp() * 1e6) == NOW


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b'{"sourceId":"a","payload":{"temperature":"21"}}', "wrong_type"),
        (b'{"sourceId":"a","payload":{"on":1}}', "wrong_type"),
        (b'{"sourceId":"a","payload":5}', "wrong_type"),
        (b'{"sourceId":true,"payload":{}}', "wrong_type"),
        (b'{"payload":{}}', "missing_field"),
        (b'{"sourceId":"","payload":{}}', "missing_field"),
        (b'{"sourceId":null,"payload":{}}', "missing_field"),
        (b'{"sourceId":"a"}', "missing_field"),
        (b'{"sourceId":"a","payload":null,"timestamp":5}', "missing_field"),
        (b'{"sourceId":"' + b"x" * 201 + b'","payload":{}}', "too_large"),
        (b'{"sourceId":"a","payload":{"label":"' + b"x" * 3000 + b'"}}', "too_large"),
        (b'{"sourceId":"a","payload":{"new":["' + b"x" * 3000 + b'"]}}', "too_large"),
        (b'{"sourceId":"a","payload":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep"),
        (b'{"sourceId":"a","payload":{"x":' + b"[" * 90 + b"]" * 90 + b"}}", "too_deep"),
        (b'{"sourceId":"a","timestamp":"soon","payload":{}}', "bad_timestamp"),
        (b'{"sourceId":"a","timestamp":-1,"payload":{}}', "bad_timestamp"),
        (b'{"sourceId":"a","timestamp":true,"payload":{}}', "bad_timestamp"),
        (b'{"sourceId":"a","timestamp":"2024-05-01T12:10:01Z","payload":{}}', "future_timestamp"),
        (b'{"sourceId":"a","payload":{"temperature":NaN}}', "out_of_range"),
        (b'{"sourceId":"a","payload":{"temperature":-Infinity}}', "out_of_range"),
        (b'{"sourceId":"a","payload":{"temperature":1e400}}', "out_of_range"),
        (b'{"sourceId":"a","payload":{"":1}}', "bad_field_name"),
        (b'{"sourceId":"a","payload":{"' + b"n" * 201 + b'":1}}', "bad_field_name"),
        (b'{"sourceId":"a","payload":{"\\ud800":1}}', "bad_encoding"),
        (b'{"sourceId":"a","payload":{"label":"\xff"}}', "bad_encoding"),
        (b'{"sourceId":"a","payload":{"label":"x}}', "malformed_json"),
        (b'{"sourceId":"a","payload":{}} trailing', "malformed_json"),
        (b'["a"]', "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
def test_a_bad_row_is_refused_alone_with_its_bytes(row: bytes, code: str) -> None:
    good = EVENT.encode()
    for before, after in ((1, 1), (40, 40)):
        body = b"\n".join([good] * before + [row] + [good] * after)
        decoded = assert_paths_agree(body, KNOWN, "application/x-ndjson", max_field_bytes=2048)
        assert decoded.accepted == before + after
        (reject,) = decoded.rejects
        assert (reject.code, reject.raw, reject.row) == (code, row, before)
        assert reject.reason
        if b'"sourceId":"a"' in row:
            assert reject.source_id == "a"


def test_unknown_keys_beside_a_payload_become_columns() -> None:
    row = one('{"sourceId":"a","site":"north","tags":{"x":1},"payload":{"temperature":1}}')
    assert (row["site"], row["tags"]) == ("north", '{"x":1}')


def test_the_first_source_key_wins_and_the_other_is_kept() -> None:
    row = one('{"sourceId":"a","deviceId":"b","type":"reading","payload":{"temperature":1}}')
    assert (row["source_id"], row["event_type"], row["deviceId"]) == ("a", "reading", "b")


def test_numbers_as_source_become_text() -> None:
    assert one('{"sensor_id":17,"temperature":1}')["source_id"] == "17"


def test_frozen_topics_refuse_new_fields_and_discarding_ones_drop_them() -> None:
    body = b'{"sourceId":"a","payload":{"temperature":1,"new":2}}'
    frozen = read(body, Topic("events", KNOWN.schema, on_new_field="freeze"))
    assert [reject.code for reject in frozen.rejects] == ["new_field"]
    assert one(body, Topic("events", KNOWN.schema, on_new_field="discard"))["payload"].keys() == {
        "temperature",
        "label",
        "on",
        "xs",
        "gps",
    }


def test_the_number_of_fields_is_bounded() -> None:
    rows = "\n".join(f'{{"sourceId":"a","payload":{{"f{i}":1}}}}' for i in range(100))
    decoded = assert_paths_agree(rows.encode(), topic(max_fields=50), "application/x-ndjson")
    assert decoded.accepted == 45
    assert {reject.code for reject in decoded.rejects} == {"too_many_fields"}


def test_a_new_field_keeps_the_type_of_its_first_accepted_row() -> None:
    rows = [
        '{"sourceId":"","payload":{"x":"text"}}',
        '{"sourceId":"a","payload":{"x":1}}',
        '{"sourceId":"a","payload":{"x":"text"}}',
    ]
    decoded = read("\n".join(rows), topic())
    assert [(reject.row, reject.code) for reject in decoded.rejects] == [
        (0, "missing_field"),
        (2, "wrong_type"),
    ]


def test_rows_without_payload_fields_leave_the_column_out() -> None:
    decoded = read('{"sourceId":"a","payload":{}}', topic())
    assert decoded.rows is not None
    assert "payload" not in decoded.rows.schema.names
    stored = Topic("events", decoded.rows.schema)
    assert one(EVENT, stored)["payload"] == {"temperature": 21.5}


@pytest.mark.parametrize(
    ("body", "media_type", "accepted", "codes"),
    [
        (EVENT, "application/json", 1, []),
        (f"\ufeff{EVENT}", "application/json", 1, []),
        (f"[{EVENT},{EVENT}]", "application/json", 2, []),
        (f"{EVENT}\n{EVENT}\n", "application/json; charset=utf-8", 2, []),
        (json.dumps(json.loads(EVENT), indent=2), "application/json", 1, []),
        ("[]", "application/json", 0, []),
        (f"[{EVENT},]", "application/json", 1, ["malformed_json"]),
        (f"[{EVENT},{EVENT}", "application/json", 2, []),
        (
            f'[{EVENT},{{"sourceId":"a","payload":{{"x":NaN}}}},{EVENT}]',
            "application/json",
            2,
            ["out_of_range"],
        ),
        (f"[{EVENT},5,null]", "application/json", 1, ["not_an_object", "not_an_object"]),
        ('{"sourceId":"a",\n "payload":{\n', "application/json", 0, ["malformed_json"]),
        (EVENT, "application/x-www-form-urlencoded", 1, []),
        (EVENT, "", 1, []),
        (f"{EVENT}\n{EVENT}", "application/octet-stream", 2, []),
        ("sourceId,temperature\na,1\n", "", 1, []),
        (f"[{EVENT}]", "application/x-ndjson", 1, []),
        ("null", "application/json", 0, ["not_an_object"]),
    ],
)
def test_every_form_of_a_json_body_is_found_out(
    body: str, media_type: str, accepted: int, codes: list[str]
) -> None:
    decoded = read(body, KNOWN, media_type)
    assert decoded.accepted == accepted
    assert [reject.code for reject in decoded.rejects] == codes


@pytest.mark.parametrize("charset", ["utf-16", "utf-16le", "latin-1"])
def test_other_charsets_are_transcoded(charset: str) -> None:
    body = '{"sourceId":"é","payload":{"temperature":1}}'.encode(charset)
    decoded = read(body, KNOWN, f"application/json; charset={charset}")
    assert decoded.rows is not None
    assert decoded.rows["source_id"].to_pylist() == ["é"]


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"", "application/json", 400),
        (b" \n\0", "", 400),
        (b"\xff\xfe\x00", "application/json; charset=utf-16", 400),
        (b"{}", "application/json; charset=klingon", 415),
        (b"<a/>", "application/xml", 415),
        (b"no arrow here", "application/vnd.apache.arrow.stream", 400),
    ],
)
def test_unusable_bodies_say_why(body: bytes, media_type: str, status: int) -> None:
    with pytest.raises(FormatFaultError) as caught:
        read(body, KNOWN, media_type)
    assert caught.value.status == status


def test_more_rows_than_allowed_are_refused_as_a_whole() -> None:
    with pytest.raises(TooLargeError) as caught:
        read("\n".join([EVENT] * 11), max_rows=10)
    assert caught.value.status == 413


def test_a_large_body_comes_out_in_order_across_pieces() -> None:
    body = "\n".join(
        f'{{"sourceId":"s{i}","timestamp":{1714560000 + i % 100},"payload":{{"temperature":{i}}}}}'
        for i in range(30_000)
    )
    decoded = read(body.replace('"temperature":77}', '"temperature":"x"}'))
    assert decoded.rows is not None
    assert [reject.row for reject in decoded.rejects] == [77]
    ids = decoded.rows["source_id"].to_pylist()
    assert ids == [f"s{i}" for i in range(30_000) if i != 77]
