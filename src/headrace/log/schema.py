"""How topics take rows: schemas that grow, settings that change, and what is refused. Shared by the logs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import pyarrow as pa

from headrace.errors import PlanError
from headrace.log.frame import encode
from headrace.model import Rows, Topic, conform, empty, unify
from headrace.units import Duration, Size

_KNOWN = 8  # schemas remembered for each topic as fitting without a change: sources send the same few again and again


class Stored:
    """A topic as it now is. Never changed: growth makes a new one, so identity says whether rows fitted earlier still fit."""

    __slots__ = ("id", "known", "topic", "version")

    def __init__(self, id_: int, topic: Topic, version: int = 1) -> None:
        self.id = id_
        self.topic = topic
        self.version = version
        self.known: tuple[pa.Schema, ...] = (topic.schema,)


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """Rows as they go into the log, and their topic after them; `against` is the topic they were compared with."""

    rows: Rows
    against: Stored
    after: Stored


def fit(stored: Stored, rows: Rows) -> Fitted:
    """Rows in a form that every later schema of the topic can take, and the topic grown by their new fields.

    Raises PlanError naming topic and field.
    """
    schema = rows.schema
    for known in stored.known:
        if known is schema or known.equals(schema):
            return Fitted(rows, stored, stored)
    topic = stored.topic
    where = f"topic {topic.name}"
    _refuse_duplicates(schema, where)
    try:
        grown = unify(topic.schema, schema, on_new_field=topic.on_new_field)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error
    after = stored
    if not grown.equals(topic.schema):
        check(dataclasses.replace(topic, schema=grown))
        after = Stored(stored.id, dataclasses.replace(topic, schema=grown), stored.version + 1)
    if _holds(list(schema), list(grown)):
        # A race between threads loses at worst one remembered schema.
        after.known = (after.known[0], schema, *after.known[1 : _KNOWN - 1])
        return Fitted(rows, stored, after)
    try:
        return Fitted(conform(rows, grown), stored, after)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise PlanError(
            f"{where}: some values do not fit its fields ({error}); they are {_types(grown)}"
        ) from error


def merge(old: Topic | None, new: Topic) -> Topic:
    """The topic that `create` leaves behind. Raises PlanError when `new` contradicts `old`."""
    where = f"topic {new.name}"
    if old is None:
        check(new)
        return new
    if new.partitions != old.partitions:
        raise PlanError(
            f"{where}: has {old.partitions} partitions, and {new.partitions} would tear its keys apart; use a new topic"
        )
    if new.key != old.key:
        raise PlanError(f"{where}: is keyed by {list(old.key)}, not {list(new.key)}; use a new topic")
    _refuse_duplicates(new.schema, where)
    try:
        schema = unify(old.schema, new.schema)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error
    merged = dataclasses.replace(new, schema=schema)
    check(merged)
    return merged


def check(topic: Topic) -> None:
    """Raise PlanError when a topic can't be kept."""
    where = f"topic {topic.name}"
    if not topic.name:
        raise PlanError("a topic needs a name")
    if topic.partitions < 1:
        raise PlanError(f"{where}: needs at least one partition, not {topic.partitions}")
    count = _leaves(topic.schema)
    if count > topic.max_fields:
        raise PlanError(
            f"{where}: would have {count} fields, more than its max_fields of {topic.max_fields}; "
            "raise max_fields, or set on_new_field to discard"
        )
    _refuse_duplicates(topic.schema, where)
    try:
        encode(empty(topic.schema))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise PlanError(f"{where}: a field's type can't be stored: {error}") from error


def find(topics: Mapping[str, Stored], name: str, partition: int) -> Stored:
    """The topic, which has that partition, or PlanError."""
    stored = topics.get(name)
    if stored is None:
        raise PlanError(
            f"there is no topic {name!r} in the log; there are {', '.join(sorted(topics)) or 'none yet'}"
        )
    if not 0 <= partition < stored.topic.partitions:
        raise PlanError(
            f"topic {name}: has no partition {partition}; they are 0 to {stored.topic.partitions - 1}"
        )
    return stored


def settings(topic: Topic) -> str:
    """All of a topic but name and schema, as JSON."""
    return json.dumps(
        {
            "partitions": topic.partitions,
            "key": list(topic.key),
            "at": topic.at,
            "on_new_field": topic.on_new_field,
            "max_fields": topic.max_fields,
            "retention_us": topic.retention.us,
            "max_bytes": topic.max_size.bytes,
        }
    )


def topic_of(name: str, text: str, schema: bytes) -> Topic:
    """What `settings` and `Schema.serialize` gave, as a topic again."""
    told = json.loads(text)
    return Topic(
        name,
        pa.ipc.read_schema(pa.py_buffer(schema)),
        partitions=told["partitions"],
        key=tuple(told["key"]),
        at=told["at"],
        on_new_field=told["on_new_field"],
        max_fields=told["max_fields"],
        retention=Duration(told["retention_us"]),
        max_size=Size(told["max_bytes"]),
    )


def _holds(have: list[pa.Field], want: list[pa.Field]) -> bool:
    """Whether fields can be stored as they are: some may be missing or null, but no value needs a cast,
    which could fail when it is too late, at reading."""
    types = {f.name: f.type for f in want}
    return all(f.name in types and _type_holds(f.type, types[f.name]) for f in have)


def _type_holds(have: pa.DataType, want: pa.DataType) -> bool:
    if have.equals(want) or pa.types.is_null(have):
        return True
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        return _holds(list(have), list(want))
    if pa.types.is_list(have) and pa.types.is_list(want):
        return _type_holds(have.value_type, want.value_type)
    return False


def _leaves(schema: pa.Schema) -> int:
    def count(type_: pa.DataType) -> int:
        while pa.types.is_list(type_):
            type_ = type_.value_type
        if pa.types.is_struct(type_):
            return max(1, sum(count(f.type) for f in type_))
        return 1

    return sum(count(f.type) for f in schema)


def _refuse_duplicates(schema: pa.Schema, where: str) -> None:
    def look(fields: list[pa.Field], path: str) -> None:
        seen: set[str] = set()
        for f in fields:
            if f.name in seen:
                raise PlanError(f"{where}: field {path}{f.name} is there twice; names must be unique")
            seen.add(f.name)
            type_ = f.type
            while pa.types.is_list(type_):
                type_ = type_.value_type
            if pa.types.is_struct(type_):
                look(list(type_), f"{path}{f.name}.")

    look(list(schema), "")


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}" for f in list(schema)[:20])
