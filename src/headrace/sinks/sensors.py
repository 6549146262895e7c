"""Sensors register themselves: whoever sends an event is in the catalog from then on."""

from __future__ import annotations

from typing import Annotated, Self

import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog import Catalog
from headrace.component import (
    Batching,
    ConfigError,
    DataError,
    Duration,
    PlanError,
    Rows,
    Sink,
    Topic,
    option,
)

_LONGEST_ID, _LONGEST_TYPE, _LONGEST_LOCATION = 200, 100, 200


class Sensors(Sink, frozen=True, kw_only=True):
    """Register the senders of events in the catalog, with type, location, first and last seen.

    Type is `payload.type` where there is one, else `event_type`; location is `payload.location`. What isn't in an event
    leaves the known value as it is. Sensors and position are in one transaction.
    """

    url: Annotated[str, option("database of the catalog; empty: the catalog of the data directory")] = ""

    @classmethod
    def example(cls) -> Self:
        return cls(url="sqlite:///catalog.db")

    def batching(self) -> Batching:
        return Batching(rows=50_000, max_rows=500_000, interval=Duration.parse("1s"))

    def connect(self) -> None:
        if self.url:
            with Catalog(self.url):
                pass

    def open(self, topic: Topic, *, name: str) -> SensorsWriter:
        if _id_column(topic.schema) is None:
            raise PlanError(
                f"sensors: {topic.name} has neither source_id nor sensor_id; its columns are {', '.join(topic.schema.names)}"
            )
        if topic.at not in topic.schema.names:
            raise PlanError(f"sensors: {topic.name} has no event time {topic.at!r}")
        if not self.url:
            raise ConfigError("sensors: no catalog is named; give url, for instance sqlite:///catalog.db")
        return SensorsWriter(Catalog(self.url), topic, name)


class SensorsWriter:
    """Upserts the sensors of one topic."""

    def __init__(self, catalog: Catalog, topic: Topic, name: str) -> None:
        self._catalog, self._topic, self._reader = catalog, topic, f"sinks/{name}"

    def committed(self, partition: int) -> int:
        return self._catalog.position(self._reader, self._topic.name, partition)

    def write(self, partition: int, rows: Rows, end: int) -> None:
        if not rows.num_rows:
            return
        self._catalog.register(self._seen(rows), self._reader, self._topic.name, partition, end)

    def close(self) -> None:
        self._catalog.close()

    def _seen(self, rows: Rows) -> list[tuple[str, str | None, str | None, int, int]]:
        """One entry for each sensor in `rows`, sorted, so that two writers never wait for each other in a circle."""
        column = _id_column(rows.schema)
        assert column is not None
        ids = _text(rows.column(column), None)
        long = pc.greater(pc.utf8_length(ids), _LONGEST_ID)
        if pc.any(long).as_py():
            where = pc.indices_nonzero(pc.fill_null(long, False)).to_pylist()
            raise DataError(
                f"{column} is longer than {_LONGEST_ID} characters, too long for the catalog", where
            )
        kind, location = pa.nulls(rows.num_rows, pa.string()), pa.nulls(rows.num_rows, pa.string())
        names = rows.schema.names
        if "event_type" in names:
            kind = _text(rows.column("event_type"), _LONGEST_TYPE)
        if "payload" in names and pa.types.is_struct(rows.schema.field("payload").type):
            payload = rows.column("payload")
            fields = {f.name for f in payload.type}
            if "type" in fields:
                kind = pc.coalesce(_text(pc.struct_field(payload, "type"), _LONGEST_TYPE), kind)
            if "location" in fields:
                location = _text(pc.struct_field(payload, "location"), _LONGEST_LOCATION)
        at = pc.cast(
            pc.cast(rows.column(self._topic.at), pa.timestamp("us", tz="UTC"), safe=False), pa.int64()
        )
        known = pc.and_(pc.is_valid(ids), pc.is_valid(at))
        table = pa.table({"id": ids, "at": at, "kind": kind, "location": location}).filter(known)
        found = (
            table.group_by("id", use_threads=False)
            .aggregate([("kind", "last"), ("location", "last"), ("at", "min"), ("at", "max")])
            .sort_by("id")
        )
        columns = ("id", "kind_last", "location_last", "at_min", "at_max")
        return list(zip(*(found[name].to_pylist() for name in columns), strict=True))


def _id_column(schema: pa.Schema) -> str | None:
    return next((name for name in ("source_id", "sensor_id") if name in schema.names), None)


def _text(array: pa.Array, longest: int | None) -> pa.Array:
    """As strings, cut where given; nulls for what can't be a text (structs, lists)."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.string())
    text = pc.cast(array, pa.string())
    return text if longest is None else pc.utf8_slice_codeunits(text, 0, longest)


__all__ = ["Sensors", "SensorsWriter"]
