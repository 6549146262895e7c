"""One row at a time: the meaning of every accepted form, and the verdict on every bad row.

This path decides. The fast path in `columns` only ever takes rows for which it gives the same, and hands all others here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from headrace.formats import timestamps
from headrace.formats.faults import Refused
from headrace.formats.fields import Fields, Kind
from headrace.model import Reject, Rows, Topic, open_struct

SOURCE_KEYS = ("sourceId", "source_id", "sensor_id")
TYPE_KEYS = ("type", "eventType", "event_type")
ENVELOPE = frozenset(("source_id", "timestamp", "received_at", "event_type", "payload"))
MAX_SOURCE_ID = 200

_decode = msgspec.json.Decoder().decode
_NOT_FINITE = re.compile(rb"(?<=[:,\[\s])[-+]?(?:NaN|Infinity|nan|inf)\b")
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)
_SOURCE = re.compile(rb'"(?:sourceId|source_id|sensor_id)"\s*:\s*(?:"((?:[^"\\]|\\.){1,400})"|(-?\d{1,40}))')


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one row, and the latest event time that is accepted."""

    max_field_bytes: int
    max_depth: int
    latest_us: int


@dataclass(frozen=True, slots=True)
class Naming:
    """Where the envelope's parts stand in a row: the keys of the source, first one wins, and of the time.

    `default_source` is the source of rows that don't name one (empty: they are refused).
    """

    source_keys: tuple[str, ...] = SOURCE_KEYS
    time_key: str = "timestamp"
    default_source: str = ""


@dataclass(eq=False, slots=True)
class Plan:
    """What is read off a topic's schema once. `out` are the columns that rows come with; `shapes`, and those
    used last, are the fast path's."""

    schema: pa.Schema
    envelope: bool
    root: Kind
    out: pa.Schema
    count: int
    shapes: dict[Any, Any] = field(default_factory=dict)
    recent: dict[Any, Any] = field(default_factory=dict)


_plans: dict[int, Plan] = {}
_MOST_PLANS = 256


def plan_of(schema: pa.Schema) -> Plan:
    """The plan of a schema, kept for the next body. (Keyed by identity: hashing a schema costs more than a small body.)"""
    plan = _plans.get(id(schema))
    if plan is None or plan.schema is not schema:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        plan = _plans[id(schema)] = make_plan(schema)
    return plan


def make_plan(schema: pa.Schema) -> Plan:
    names = set(schema.names)
    payload = schema.field("payload").type if "payload" in names else None
    # A topic of events whose payload hasn't had a field yet may be stored without the column.
    envelope = {"source_id", "timestamp"} <= names and (
        pa.types.is_struct(payload) if payload is not None else {"received_at", "event_type"} <= names
    )
    whole = schema.append(open_struct()) if envelope and payload is None else schema
    root = Kind(pa.struct(list(whole)))
    fields = [f for f in whole if not (pa.types.is_struct(f.type) and f.type.num_fields == 0)]
    out = pa.schema(fields, metadata=schema.metadata)
    return Plan(schema, envelope, root, schema if out.equals(schema) else out, root.count() - 1)


class RowReader:
    """Reads the rows of one body, in order: `read` for a value, `line` for JSON text. New fields add up in `fields`."""

    def __init__(self, topic: Topic, plan: Plan, *, now_us: int, limits: Limits, naming: Naming) -> None:
        self.plan = plan
        self.naming = naming
        self.now_us = now_us
        self.limits = limits
        self.at = topic.at
        self.fields = Fields(
            plan.root,
            policy=topic.on_new_field,
            max_fields=topic.max_fields,
            max_field_bytes=limits.max_field_bytes,
            max_depth=limits.max_depth,
            count=plan.count,
        )
        stored = not plan.envelope or "payload" in plan.schema.names
        self._schema = plan.schema if stored else plan.schema.append(open_struct())
        self._read: Callable[[dict[str, Any]], dict[str, Any]] = (
            self._event if plan.envelope else self._declared
        )

    def schema(self) -> pa.Schema:
        """The topic's columns grown by the rows read so far."""
        return self.fields.grown(self._schema) if self.fields.added else self.plan.out

    def line(self, raw: bytes) -> dict[str, Any]:
        """The row in a JSON text, by column. Raises Refused."""
        return self.read(parse(raw))

    def read(self, value: object) -> dict[str, Any]:
        """The row in a decoded JSON value (which is taken apart), by column. Raises Refused."""
        if type(value) is not dict:
            raise Refused("not_an_object", "a row is a JSON object")
        try:
            row = self._read(value)
        except BaseException:
            self.fields.drop()
            raise
        self.fields.keep()
        return row

    def batch(self, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> Rows:
        """Rows that `read` gave, as columns of `schema`."""
        arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _time(self, value: object) -> int:
        us = timestamps.one(value)
        if us > self.limits.latest_us:
            raise Refused("future_timestamp", f"{str(value)[:60]} is in the future")
        return us

    def _declared(self, row: dict[str, Any]) -> dict[str, Any]:
        out = self.fields.object(row, self.plan.root, "", 1)
        if self.at in out and self.plan.root.fields[self.at].tag == "time":
            self._time(row[self.at])
        return out

    def _event(self, row: dict[str, Any]) -> dict[str, Any]:
        naming = self.naming
        source_id = _source_id(_first(row, naming.source_keys) or naming.default_source)
        event_type = _first(row, TYPE_KEYS)
        stamp = row.pop(naming.time_key, None)
        row.pop("received_at", None)  # said by the receiver, never by the sender
        out: dict[str, Any] = {
            "source_id": source_id,
            "timestamp": self.now_us if stamp is None else self._time(stamp),
            "received_at": self.now_us,
        }
        known = self.plan.root.fields
        if event_type is not None and "event_type" in known:
            out["event_type"] = self.fields.take(event_type, known["event_type"], "event_type", 1)
        payload = row.pop("payload", None)
        if payload is None:
            if not row:
                raise Refused("missing_field", "the row has neither a payload nor fields of its own")
            payload, row = row, {}
        elif type(payload) is not dict:
            raise Refused("wrong_type", "payload: an object is expected")
        for name, value in row.items():
            if value is None:
                continue
            if name in ENVELOPE:  # a second name for what was taken from the first
                payload.setdefault(name, value)
                continue
            kind = self.fields.known(self.plan.root, name)
            taken = (
                self.fields.new(value, self.plan.root, name, name, 1, scalars=True)
                if kind is None
                else self.fields.take(value, kind, name, 1)
            )
            if taken is not None:
                out[name] = taken
        out["payload"] = self.fields.object(payload, known["payload"], "payload", 2)
        for name in self.plan.root.required:
            if name not in out:
                raise Refused("missing_field", f"{name} is missing")
        return out


def _first(row: dict[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        value = row.get(key)
        if value is not None:
            del row[key]
            return value
    for key in keys:
        row.pop(key, None)
    return None


def _source_id(value: object) -> str:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int:
        value = str(value)
    if value is None or value == "":
        raise Refused("missing_field", "sourceId is missing or empty")
    if type(value) is not str:
        raise Refused("wrong_type", "sourceId: a text is expected")
    if len(value) > MAX_SOURCE_ID:
        raise Refused(
            "too_large", f"sourceId has {len(value)} characters; at most {MAX_SOURCE_ID} are accepted"
        )
    return value


# -- JSON text -------------------------------------------------------------------------------------


def parse(raw: bytes) -> object:
    """A JSON text decoded. Raises Refused with the cause."""
    try:
        return _decode(raw)
    except RecursionError:
        raise Refused("too_deep", "objects or arrays are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Refused("bad_encoding", f"not UTF-8: {error.reason}") from None
    except ValueError as error:
        raise _malformed(raw, error) from None


def _malformed(raw: bytes, error: ValueError) -> Refused:
    text = str(error)
    text = text.removeprefix("JSON is malformed: ")
    if "out of range" in text:
        return Refused("out_of_range", "a number is larger than a double can hold")
    try:
        raw.decode()
    except UnicodeDecodeError as bad:
        return Refused("bad_encoding", f"not UTF-8: {bad.reason} at byte {bad.start}")
    for pattern, replacement, refused in (
        (_NOT_FINITE, b"0", Refused("out_of_range", "NaN and Infinity are not numbers in JSON")),
        (_LONE_SURROGATE, b"x", Refused("bad_encoding", "half of a surrogate pair")),
    ):
        if len(raw) <= 1 << 20 and pattern.search(raw):
            try:
                _decode(pattern.sub(replacement, raw))
            except (ValueError, RecursionError):
                continue
            return refused
    return Refused("malformed_json", f"not JSON: {text[:1].lower()}{text[1:]}")


def source_of(raw: bytes) -> str | None:
    """Who sent a row that can't be read, as far as its bytes tell."""
    found = _SOURCE.search(raw, 0, 65_536)
    if found is None:
        return None
    if found[2] is not None:
        return found[2].decode()
    try:
        text = str(_decode(b'"' + found[1] + b'"'))
    except ValueError:
        text = found[1].decode("utf-8", "replace")
    return text[:MAX_SOURCE_ID]


def reject(raw: bytes, refused: Refused, row: int, source_id: str | None = None) -> Reject:
    """The verdict on a row, with its bytes."""
    return Reject(bytes(raw), refused.code, refused.reason, source_id or source_of(raw), row)
