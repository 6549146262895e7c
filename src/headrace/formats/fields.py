"""What each field of a topic may hold, and one JSON value turned into what Arrow will hold.

A `Kind` is read off a column's type once for a topic. Fields that a body brings along are kept beside in `Fields`, so that
kinds are never changed and can be shared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Literal

import pyarrow as pa

from headrace.formats import timestamps
from headrace.formats.faults import Refused
from headrace.model import OnNewField

Tag = Literal["number", "integer", "bool", "text", "time", "date", "binary", "struct", "list", "other"]

MAX_NAME = 200
_INT64 = (-(2**63), 2**63 - 1)


class Kind:
    """What a field may hold. `fields` for a struct, `item` for a list, `low` and `high` for numbers."""

    __slots__ = ("fields", "high", "item", "low", "nullable", "required", "tag", "type", "unit")

    def __init__(self, type_: pa.DataType, *, nullable: bool = True) -> None:
        self.type = type_
        self.nullable = nullable
        self.fields: dict[str, Kind] = {}
        self.item: Kind | None = None
        self.low: float = -1.7976931348623157e308
        self.high: float = 1.7976931348623157e308
        self.unit = 1  # microseconds per tick of a time; negative: ticks per microsecond
        self.tag: Tag = self._read(type_.value_type if pa.types.is_dictionary(type_) else type_)
        self.required = tuple(name for name, kind in self.fields.items() if not kind.nullable)

    def _read(self, type_: pa.DataType) -> Tag:
        types = pa.types
        if types.is_floating(type_):
            if type_.bit_width < 64:
                self.high = 3.4028234e38 if type_.bit_width == 32 else 65504.0
                self.low = -self.high
            return "number"
        if types.is_integer(type_):
            bits = type_.bit_width - (not types.is_unsigned_integer(type_))
            self.high = 2**bits - 1
            self.low = 0 if types.is_unsigned_integer(type_) else -(2**bits)
            return "integer"
        if types.is_boolean(type_):
            return "bool"
        if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
            return "text"
        if types.is_timestamp(type_):
            self.unit = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": -1_000}[type_.unit]
            return "time"
        if types.is_date(type_):
            return "date"
        if types.is_binary(type_) or types.is_large_binary(type_):
            return "binary"
        if types.is_struct(type_):
            self.fields = {f.name: Kind(f.type, nullable=f.nullable) for f in type_}
            return "struct"
        if types.is_list(type_) or types.is_large_list(type_):
            self.item = Kind(type_.value_type)
            return "list"
        return "other"

    def count(self) -> int:
        """Number of fields at and below this one."""
        return 1 + sum(kind.count() for kind in self.fields.values())


NUMBER = Kind(pa.float64())
BOOL = Kind(pa.bool_())
TEXT = Kind(pa.string())
NUMBERS = Kind(pa.list_(pa.float64()))


def json_text(value: object) -> str:
    """`value` as compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Fields:
    """Known fields of one topic while one body is read: those of the topic, and new ones of rows accepted so far.

    A row is read with `take` and the like; `keep` then makes its new fields known, `drop` forgets them (the row was refused).
    """

    def __init__(
        self,
        root: Kind,
        *,
        policy: OnNewField,
        max_fields: int,
        max_field_bytes: int,
        max_depth: int,
        count: int,
    ) -> None:
        self.root = root
        self.policy = policy
        self.added: dict[Kind, dict[str, Kind]] = {}
        self._pending: list[tuple[Kind, str, Kind]] = []
        self._max_fields = max_fields
        self._max_field_bytes = max_field_bytes
        self._max_depth = max_depth
        self._count = count

    def keep(self) -> None:
        for parent, name, kind in self._pending:
            self.added.setdefault(parent, {})[name] = kind
            self._count += kind.count()
        self._pending.clear()

    def drop(self) -> None:
        self._pending.clear()

    def known(self, parent: Kind, name: str) -> Kind | None:
        """The kind of a field, None when it hasn't been seen."""
        kind = parent.fields.get(name)
        if kind is None and self.added:
            kind = self.added.get(parent, {}).get(name)
        return kind

    def grown(self, schema: pa.Schema) -> pa.Schema:
        """`schema` with the new fields, and without structs that have no field yet (files can't hold those)."""
        fields = [
            f if f.name not in self.root.fields else self._grown(f, self.root.fields[f.name]) for f in schema
        ]
        fields += [pa.field(name, self._type(kind)) for name, kind in self.added.get(self.root, {}).items()]
        return pa.schema([f for f in fields if not _empty_struct(f.type)], metadata=schema.metadata)

    def _grown(self, field: pa.Field, kind: Kind) -> pa.Field:
        return field.with_type(self._type(kind)) if self.added else field

    def _type(self, kind: Kind) -> pa.DataType:
        if kind.tag == "list" and kind.item is not None and kind.item.tag == "struct":
            return pa.list_(self._type(kind.item))
        if kind.tag != "struct":
            return kind.type
        fields = [self._grown(f, kind.fields[f.name]) for f in kind.type]
        return pa.struct(
            fields + [pa.field(name, self._type(new)) for name, new in self.added.get(kind, {}).items()]
        )

    # -- one value ---------------------------------------------------------------------------------

    def object(self, values: Mapping[str, Any], kind: Kind, path: str, depth: int) -> dict[str, Any]:
        """The fields of a struct. Unknown ones follow the topic's on_new_field."""
        if depth > self._max_depth:
            raise Refused("too_deep", f"{path or 'the row'} is nested deeper than {self._max_depth}")
        out = {}
        fields = kind.fields
        for name, value in values.items():
            if value is None:
                continue
            known = fields.get(name) or (self.known(kind, name) if self.added else None)
            if known is not None:
                tag = known.tag
                if (
                    tag == "number" and type(value) is float and known.low <= value <= known.high
                ):  # by far the most common
                    out[name] = value
                else:
                    out[name] = self.take(value, known, f"{path}.{name}" if path else name, depth)
            else:
                new = self.new(value, kind, name, f"{path}.{name}" if path else name, depth)
                if new is not None:
                    out[name] = new
        for name in kind.required:
            if name not in out:
                raise Refused("missing_field", f"{f'{path}.{name}' if path else name} is missing")
        return out

    def new(
        self, value: Any, parent: Kind, name: str, path: str, depth: int, *, scalars: bool = False
    ) -> Any:
        """A value of a field that isn't known: it becomes known once the row is kept."""
        if self.policy == "discard":
            return None
        if not 0 < len(name) <= MAX_NAME:
            raise Refused("bad_field_name", f"a field name has 1 to {MAX_NAME} characters, not {len(name)}")
        if self.policy == "freeze":
            raise Refused("new_field", f"{path} is not a field of this topic, and its on_new_field is freeze")
        if scalars and isinstance(value, (dict, list)):
            found: tuple[Kind | None, Any] = TEXT, self._text(value, path, depth)
        else:
            found = self._infer(value, path, depth)
        kind, taken = found
        if kind is not None:
            if (
                self._count + sum(new.count() for _, _, new in self._pending) + kind.count()
                > self._max_fields
            ):
                raise Refused(
                    "too_many_fields",
                    f"{path} would be more than the {self._max_fields} fields of this topic",
                )
            self._pending.append((parent, name, kind))
        return taken

    def _infer(self, value: Any, path: str, depth: int) -> tuple[Kind | None, Any]:
        if isinstance(value, bool):
            return BOOL, value
        if isinstance(value, (int, float)):
            return NUMBER, self.take(value, NUMBER, path, depth)
        if isinstance(value, str):
            return TEXT, self.take(value, TEXT, path, depth)
        if isinstance(value, list):
            if all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in value):
                return NUMBERS, self.take(value, NUMBERS, path, depth)
            return TEXT, self._text(value, path, depth)
        if depth >= self._max_depth:
            raise Refused("too_deep", f"{path} is nested deeper than {self._max_depth}")
        kind = Kind(pa.struct([]))
        out = {}
        for name, child in value.items():
            if child is None:
                continue
            below = f"{path}.{name}"
            if not 0 < len(name) <= MAX_NAME:
                raise Refused(
                    "bad_field_name", f"a field name has 1 to {MAX_NAME} characters, not {len(name)}"
                )
            inner, taken = self._infer(child, below, depth + 1)
            if inner is not None:
                kind.fields[name] = inner
                out[name] = taken
        if not kind.fields:
            return None, None  # no storage can hold an object without fields; there is no value to lose
        kind.type = pa.struct([pa.field(name, inner.type) for name, inner in kind.fields.items()])
        return kind, out

    def take(self, value: Any, kind: Kind, path: str, depth: int) -> Any:
        """`value` as its column will hold it. Raises Refused."""
        tag = kind.tag
        type_ = type(value)
        if tag == "number":
            if type_ is float or type_ is int:
                try:
                    number = float(value)
                except OverflowError:
                    number = float("inf")
                if not kind.low <= number <= kind.high:
                    raise Refused("out_of_range", f"{path}: the number is out of the range of {kind.type}")
                return number
            raise _wrong(path, "a number", value)
        if tag == "text":
            return self._text(value, path, depth)
        if tag == "bool":
            if type_ is bool:
                return value
            raise _wrong(path, "true or false", value)
        if tag == "struct":
            if type_ is not dict:
                raise _wrong(path, "an object", value)
            return self.object(value, kind, path, depth + 1)
        if tag == "list":
            if type_ is not list:
                raise _wrong(path, "an array", value)
            return self._list(value, kind, path, depth)
        if tag == "integer":
            if type_ is float and value.is_integer():
                value, type_ = int(value), int
            if type_ is not int:
                raise _wrong(path, "a whole number", value)
            if not kind.low <= value <= kind.high:
                raise Refused("out_of_range", f"{path}: {str(value)[:40]} is out of the range of {kind.type}")
            return value
        if tag == "time":
            try:
                us = timestamps.one(value)
            except Refused as refused:
                raise Refused(refused.code, f"{path}: {refused.reason}") from None
            return us // kind.unit if kind.unit > 0 else us * -kind.unit
        if tag == "date":
            try:
                return date.fromisoformat(value)
            except (TypeError, ValueError):
                raise _wrong(path, "a date such as 2024-05-01", value) from None
        if tag == "binary" and type_ is str:
            return self._text(value, path, depth).encode()
        raise _wrong(path, str(kind.type), value)

    def _list(self, values: list[Any], kind: Kind, path: str, depth: int) -> list[Any]:
        if depth >= self._max_depth:
            raise Refused("too_deep", f"{path} is nested deeper than {self._max_depth}")
        if len(values) * 8 > self._max_field_bytes:
            raise Refused(
                "too_large",
                f"{path} has {len(values)} elements; a field has at most {self._max_field_bytes} bytes",
            )
        item = kind.item
        assert item is not None
        where = f"{path}[]"
        return [None if value is None else self.take(value, item, where, depth + 1) for value in values]

    def _text(self, value: Any, path: str, depth: int) -> str:
        if type(value) is not str:
            if isinstance(value, (dict, list)) and not _shallow((value,), self._max_depth - depth + 1):
                raise Refused("too_deep", f"{path} is nested deeper than {self._max_depth}")
            value = json_text(value)
        # UTF-8 takes at most 4 bytes a character, so most texts needn't be encoded to know.
        if len(value) * 4 > self._max_field_bytes:
            size = len(value.encode("utf-8", "surrogatepass"))
            if size > self._max_field_bytes:
                raise Refused(
                    "too_large", f"{path} has {size} bytes; a field has at most {self._max_field_bytes}"
                )
        return str(value)


def _shallow(values: Iterable[Any], depth: int) -> bool:
    inner = [v.values() if isinstance(v, dict) else v for v in values if isinstance(v, (dict, list))]
    return not inner or (depth > 0 and all(_shallow(v, depth - 1) for v in inner))


def _empty_struct(type_: pa.DataType) -> bool:
    return bool(pa.types.is_struct(type_) and type_.num_fields == 0)


def _wrong(path: str, expected: str, value: Any) -> Refused:
    got = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "an array",
        dict: "an object",
    }
    return Refused("wrong_type", f"{path}: {expected} is expected, not {got.get(type(value), 'this')}")
