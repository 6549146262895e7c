"""Types of the fields seen so far as plain JSON, for the cursor: a column keeps its type over restarts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from headrace.component import EVENTS, TIMESTAMP


def types_of(schema: pa.Schema) -> dict[str, Any]:
    """Columns that are not the envelope's, and the payload's fields, as plain JSON."""
    known = set(EVENTS.names)
    return {f.name: _plain(f.type) for f in schema if f.name not in known or f.name == "payload"}


def schema_of(types: dict[str, Any]) -> pa.Schema:
    """The events schema with the fields that `types_of` gave."""
    schema = EVENTS
    for name, plain in types.items():
        index = schema.get_field_index(name)
        if index >= 0:
            schema = schema.set(index, schema.field(index).with_type(_type(plain)))
        else:
            schema = schema.append(pa.field(name, _type(plain)))
    return schema


def _plain(type_: pa.DataType) -> Any:
    if pa.types.is_struct(type_):
        return {f.name: _plain(f.type) for f in type_}
    if pa.types.is_list(type_):
        return [_plain(type_.value_type)]
    return "time" if pa.types.is_timestamp(type_) else str(type_)


def _type(plain: Any) -> pa.DataType:
    if isinstance(plain, dict):
        return pa.struct([pa.field(name, _type(inner)) for name, inner in plain.items()])
    if isinstance(plain, list):
        return pa.list_(_type(plain[0]))
    return TIMESTAMP if plain == "time" else pa.type_for_alias(plain)
