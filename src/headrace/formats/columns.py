"""Many JSON rows of one form at once: typed decoding in C, then checks on whole columns.

A `Shape` is made for the columns of a topic and the form of one accepted row (which envelope keys it uses, and how it writes
its times). It takes rows that differ from it in nothing but values and missing fields. What it doesn't take, or marks, is
read by `rows`, so both always agree. (pyarrow's own JSON reader is not used: it was slower, and top-level `null` and deep
nesting crash the process.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats import timestamps
from headrace.formats.fields import Kind
from headrace.formats.rows import ENVELOPE, MAX_SOURCE_ID, TYPE_KEYS, Limits, Naming, Plan
from headrace.model import TIMESTAMP, OnNewField, Rows

_MOST_SHAPES = 64  # forms kept for one schema
_WIDE = 64  # beyond this many fields, only those of the first row are looked for in the others

# One attribute of many objects. A comprehension with the name written in it takes half the time of map(attrgetter(...)).
_GET: list[Callable[[Sequence[Any]], list[Any]]] = [
    eval(f"lambda rows: [row.f{i} for row in rows]")  # noqa: S307  fixed text
    for i in range(512)
]

_UNNAMEABLE = re.compile(r'["\\\x00-\x1f]|[\ud800-\udfff]')

Mask: TypeAlias = npt.NDArray[np.bool_]


class _Group:
    """A struct type for msgspec, and how its members become columns. `ignored` fields may be there and mean nothing."""

    def __init__(
        self,
        fields: Mapping[str, Kind],
        forms: Mapping[str, type],
        *,
        only: frozenset[str] | None,
        ignored: Iterable[str] = (),
        ignored_in_payload: Iterable[str] = (),
    ) -> None:
        self.members: list[tuple[str, Kind, _Group | None]] = []
        self.usable = True
        members: list[tuple[str, Any, Any]] = []
        for name, kind in fields.items():
            below = ignored_in_payload if name == "payload" else ()
            group = _Group(kind.fields, {}, only=only, ignored=below) if kind.tag == "struct" else None
            type_ = _type_of(kind, forms.get(name)) if group is None else group.row_type
            wanted = only is None or name in only or group is not None or not kind.nullable
            wanted = wanted and _nameable(name)
            if (
                not wanted
                or type_ is None
                or len(members) >= len(_GET)
                or (group and kind.nullable and kind.required)
            ):
                self.usable = self.usable and kind.nullable
                continue
            self.usable = self.usable and (group is None or group.usable)
            optional = {"default": None} if kind.nullable else {}
            members.append(
                (
                    f"f{len(members)}",
                    type_ | None if kind.nullable else type_,
                    msgspec.field(name=name, **optional),
                )
            )
            self.members.append((name, kind, group))
        members += [
            (f"i{n}", Any, msgspec.field(name=name, default=None))
            for n, name in enumerate(filter(_nameable, ignored))
        ]
        self.row_type: type[Any] = msgspec.defstruct(
            "Row", members, gc=False, kw_only=True, forbid_unknown_fields=True
        )

    def columns(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Values of each member by name: a list, or the array of a struct."""
        found: dict[str, Any] = {}
        for i, (name, kind, group) in enumerate(self.members):
            values = _GET[i](rows)
            found[name] = values if group is None else group.array(values, kind)
        return found

    def array(self, rows: Sequence[Any], kind: Kind) -> pa.Array:
        """The struct array of rows, some of which may be None."""
        mask = None
        if kind.nullable:
            absent = [row is None for row in rows]
            if any(absent):
                empty = self.row_type()
                rows = [empty if row is None else row for row in rows]
                mask = pa.array(absent, pa.bool_())
        return struct_array(self.columns(rows), kind, len(rows), mask)


def struct_array(found: Mapping[str, Any], kind: Kind, count: int, mask: pa.Array | None = None) -> pa.Array:
    """A struct array out of the columns that there are; the other fields are null."""
    children = [
        _array(found[f.name], f.type) if f.name in found else pa.nulls(count, f.type) for f in kind.type
    ]
    if not children:
        return pa.array([{}] * count, kind.type)
    return pa.StructArray.from_arrays(children, fields=list(kind.type), mask=mask)


def _array(values: Any, type_: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, type_)


def _nameable(name: str) -> bool:
    """Whether msgspec can be told of a field of this name; rows with another are left to the row path."""
    return not _UNNAMEABLE.search(name)


def _type_of(kind: Kind, form: Any) -> Any:
    """The Python type under which msgspec reads a field, None for one that only `rows` can read."""
    if kind.tag == "number" and pa.types.is_float64(kind.type):
        return float
    if kind.tag == "integer":
        return int
    if kind.tag == "text" and pa.types.is_string(kind.type):
        return str
    if kind.tag == "bool":
        return bool
    if (
        kind.tag == "list"
        and kind.item is not None
        and pa.types.is_list(kind.type)
        and pa.types.is_float64(kind.item.type)
    ):
        return list[float | None]
    if kind.tag == "time" and form in (str, int, float):
        return form
    return None


@dataclass(frozen=True, slots=True)
class Form:
    """How a sender writes its rows: `source`, `time` and `event_type` are the envelope's keys (empty: not there), `flat` that the payload's
    fields stand beside them, `forms` how ids and times are written. Fields in `ignored` are dropped by the topic; `only`
    are the fields to look for when there are too many. `default_source` stands in for a source key."""

    envelope: bool = False
    source: str = ""
    default_source: str = ""
    time: str = ""
    event_type: str = ""
    flat: bool = False
    forms: frozenset[tuple[str, type]] = frozenset()
    ignored: frozenset[str] = frozenset()
    ignored_in_payload: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    @property
    def times(self) -> list[str]:
        """Fields that hold times."""
        return [name for name, _ in self.forms if name != self.source]


def form_of(plan: Plan, row: Mapping[str, Any], policy: OnNewField, naming: Naming) -> Form | None:
    """The form of one decoded row; None when only the row path understands it."""
    known = plan.root.fields
    forms = {
        name: type(row[name])
        for name, kind in known.items()
        if kind.tag == "time" and row.get(name) is not None
    }
    unknown = row.keys() - known.keys() if policy == "discard" else set()
    if not plan.envelope:
        only = frozenset(row) if plan.count > _WIDE else None
        return Form(forms=frozenset(forms.items()), ignored=frozenset(unknown), only=only)
    sources = [key for key in naming.source_keys if key in row]
    types = [key for key in TYPE_KEYS if key in row]
    flat = "payload" not in row
    inner = row if flat else row["payload"]
    if (
        len(sources) > 1
        or not (sources or naming.default_source)
        or len(types) > 1
        or not isinstance(inner, dict)
    ):
        return None
    if types and "event_type" not in known:
        return None
    reserved = reserved_keys(naming)
    forms = {name: form for name, form in forms.items() if name not in reserved}
    if row.get(naming.time_key) is not None:
        forms[naming.time_key] = type(row[naming.time_key])
    if sources:
        forms[sources[0]] = type(row[sources[0]])
    unknown_inside = (
        inner.keys() - known["payload"].fields.keys() - reserved if policy == "discard" else set()
    )
    return Form(
        envelope=True,
        source=sources[0] if sources else "",
        default_source="" if sources else naming.default_source,
        time=naming.time_key if naming.time_key in forms else "",
        event_type=types[0] if types else "",
        flat=flat,
        forms=frozenset(forms.items()),
        ignored=frozenset(({"received_at"} & row.keys()) | (unknown_inside if flat else unknown - reserved)),
        ignored_in_payload=frozenset() if flat else frozenset(unknown_inside),
        only=frozenset(row) | frozenset(inner) if plan.count > _WIDE else None,
    )


def reserved_keys(naming: Naming) -> frozenset[str]:
    """Keys of the envelope: never fields of a flat payload, nor columns beside one."""
    return ENVELOPE | {*naming.source_keys, *TYPE_KEYS, naming.time_key}


class Shape:
    """Reads rows of one form. `one`, `lines` and `many` decode a text, lines, an array; `batch` makes columns of that."""

    def __init__(self, plan: Plan, form: Form, naming: Naming) -> None:
        known = plan.root.fields
        forms = dict(form.forms)
        fields = known
        self._payload = known.get("payload")
        if form.envelope:
            payload = known["payload"]
            reserved = reserved_keys(naming)
            fields = {}
            if form.source:
                fields[form.source] = Kind(
                    pa.string() if forms[form.source] is str else pa.int64(), nullable=False
                )
            if form.time:
                fields[form.time] = Kind(TIMESTAMP, nullable=False)
            if form.event_type:
                fields[form.event_type] = known["event_type"]
            if form.flat:
                fields |= {name: kind for name, kind in payload.fields.items() if name not in reserved}
            else:
                fields["payload"] = Kind(payload.type, nullable=False)
                fields |= {name: kind for name, kind in known.items() if name not in reserved}
        self._form = form
        self._text_ids = forms.get(form.source) is str
        self._schema = plan.out
        self._group = _Group(
            fields, forms, only=form.only, ignored=form.ignored, ignored_in_payload=form.ignored_in_payload
        )
        row = self._group.row_type
        self.usable = self._group.usable and forms.get(form.source, str) in (str, int)
        self.one: Callable[[bytes], Any] = msgspec.json.Decoder(row).decode
        self.lines: Callable[[bytes], list[Any]] = msgspec.json.Decoder(row).decode_lines
        self.many: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[row]).decode  # type: ignore[valid-type]

    def batch(
        self, rows: Sequence[Any], now_us: int, at: str, limits: Limits, *, long: bool
    ) -> tuple[Rows, Mask] | None:
        """The columns of decoded rows, and which of them the row path has to judge instead; None: all of them.

        `long` says that some value may be over the limit.
        """
        count = len(rows)
        form = self._form
        doubtful = np.zeros(count, bool)
        try:
            found = self._group.columns(rows)
            for name in form.times:
                us = timestamps.column(found[name])
                if us.min() < 0:
                    doubtful |= us < 0
                if name == (form.time or at) and us.max() > limits.latest_us:
                    doubtful |= us > limits.latest_us
                found[name] = pa.array(us).view(TIMESTAMP)
            if form.envelope:
                found = self._event(found, count, now_us, doubtful)
            arrays = [
                _array(found[f.name], f.type) if f.name in found else pa.nulls(count, f.type)
                for f in self._schema
            ]
        except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):
            return None
        if long:
            for array in arrays:
                _mark_long(array, limits.max_field_bytes, doubtful)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema), doubtful

    def _event(self, found: dict[str, Any], count: int, now_us: int, doubtful: Mask) -> dict[str, Any]:
        form = self._form
        # Always with a type: without one, pyarrow looks for pandas on every call.
        if not form.source:
            ids = pa.repeat(pa.scalar(form.default_source, pa.string()), count)
        elif self._text_ids:
            ids = pa.array(found.pop(form.source), pa.string())
        else:
            ids = pc.cast(pa.array(found.pop(form.source), pa.int64()), pa.string())
        lengths = np.asarray(pc.utf8_length(ids))
        if lengths.min() == 0 or lengths.max() > MAX_SOURCE_ID:
            doubtful |= (lengths == 0) | (lengths > MAX_SOURCE_ID)
        now = pa.array(np.full(count, now_us, np.int64)).view(TIMESTAMP)
        out = {"source_id": ids, "timestamp": found.pop(form.time, now), "received_at": now}
        if form.event_type:
            out["event_type"] = found.pop(form.event_type)
        if form.flat:
            assert self._payload is not None
            payload = {
                name: _array(values, self._payload.fields[name].type) for name, values in found.items()
            }
            if all(array.null_count for array in payload.values()):  # a row without any field is judged apart
                doubtful |= np.all(
                    [np.asarray(array.is_null()) for array in payload.values()] or [np.array([True])], axis=0
                )
            return out | {"payload": struct_array(payload, self._payload, count)}
        return out | found


def shape_of(plan: Plan, form: Form, naming: Naming, max_depth: int) -> Shape | None:
    """The shape for a form, kept with the plan; None when the row path has to read such rows."""
    key = (form, naming)
    if key not in plan.shapes:
        if len(plan.shapes) >= _MOST_SHAPES:
            plan.shapes.clear()
        shape = Shape(plan, form, naming)
        plan.shapes[key] = shape if shape.usable else None
    found: Shape | None = plan.shapes[key]
    return found if _depth(plan.root) <= max_depth else None


def _depth(kind: Kind) -> int:
    inner = [*kind.fields.values(), *([kind.item] if kind.item else [])]
    return 1 + max((_depth(k) for k in inner), default=0)


def _mark_long(array: pa.Array, limit: int, doubtful: Mask) -> None:
    """Mark rows with a text or a list over the limit of one field."""
    if pa.types.is_struct(array.type):
        for child in array.flatten():
            _mark_long(child, limit, doubtful)
        return
    if pa.types.is_string(array.type):
        sizes = pc.binary_length(array)
    elif pa.types.is_list(array.type):
        sizes = pc.list_value_length(array)
        limit = limit // 8
    else:
        return
    # Nulls come out as NaN, which is not greater than anything.
    doubtful |= sizes.to_numpy(zero_copy_only=False) > limit
