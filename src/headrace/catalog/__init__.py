"""The catalog: what headrace knows besides the rows themselves. SQLAlchemy Core; SQLite by default, others by URL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import sqlalchemy as sa

from headrace.catalog.tables import SCHEMA_VERSION, meta, metadata, positions, sensors
from headrace.clock import Clock, SystemClock
from headrace.errors import ConfigError, FormatError, RetryableError
from headrace.model import TIMESTAMP

__all__ = ["SENSORS", "Catalog", "Sensor", "sensors_table"]

ONLINE_US = 60_000_000

SENSORS = pa.schema(
    [
        pa.field("sensor_id", pa.string(), nullable=False),
        pa.field("type", pa.string()),
        pa.field("location", pa.string()),
        pa.field("created_at", TIMESTAMP, nullable=False),  # when it was registered
        pa.field("first_seen", TIMESTAMP, nullable=False),  # event times
        pa.field("last_seen", TIMESTAMP, nullable=False),
        pa.field("online", pa.bool_(), nullable=False),
    ]
)

Sensor = tuple[str, str | None, str | None, int, int]
"""sensor_id, type, location, first and last event time in microseconds."""


class Catalog:
    """One catalog. Safe to use from several threads and processes. `open` first, or use it in a `with` block."""

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self.url = url
        self._clock = clock or SystemClock()
        self._engine: sa.Engine | None = None
        self._opening = threading.Lock()

    def open(self) -> Self:
        """Connect, and make the tables that are missing. Raises FormatError for a catalog of a newer headrace."""
        with self._opening:
            if self._engine is None:
                engine = _engine(self.url)
                try:
                    self._prepare(engine)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine = engine
        return self

    def close(self) -> None:
        with self._opening:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, engine: sa.Engine) -> None:
        try:
            with engine.begin() as connection:
                found: int | None = None
                if sa.inspect(connection).has_table(meta.name):
                    found = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema_version"))
                if found is not None and found > SCHEMA_VERSION:
                    raise FormatError(
                        f"catalog {engine.url}: its tables have version {found}, this headrace knows up to "
                        f"{SCHEMA_VERSION}; upgrade headrace. Nothing was changed"
                    )
                if found != SCHEMA_VERSION:
                    # Another process may be making it at this very moment: everything here may be done twice.
                    for table in metadata.sorted_tables:
                        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                    version = _insert(engine.dialect.name)(meta).values(
                        key="schema_version", value=SCHEMA_VERSION
                    )
                    connection.execute(version.on_conflict_do_nothing())
        except sa.exc.DBAPIError as error:
            raise RetryableError(f"opening the catalog {engine.url}: {error.orig}") from error

    # -- sensors -----------------------------------------------------------------------------------

    def sensors(self, limit: int = 1_000, after: str = "", *, online_within_us: int = ONLINE_US) -> pa.Table:
        """Sensors by id, those after `after`. A sensor is online when it was seen within `online_within_us`."""
        chosen = (
            sa.select(sensors).where(sensors.c.sensor_id > after).order_by(sensors.c.sensor_id).limit(limit)
        )
        return self._sensors(chosen, online_within_us)

    def sensors_arrow(self, *, online_within_us: int = ONLINE_US) -> pa.Table:
        """All sensors."""
        return self._sensors(sa.select(sensors), online_within_us)

    def _sensors(self, chosen: sa.Select[Any], online_within_us: int) -> pa.Table:
        with self._begin("reading sensors") as connection:
            rows = connection.execute(chosen).all()
        return sensors_table(rows, since_us=self._clock.now_us() - online_within_us)

    def register(self, seen: Sequence[Sensor], reader: str, topic: str, partition: int, end: int) -> None:
        """Take over what a span of rows tells about sensors, together with the position after it.

        A type or location that is None leaves the known one as it is. Doing it twice changes nothing.
        """
        now_us = self._clock.now_us()
        records = [
            {
                "sensor_id": s[0],
                "type": s[1],
                "location": s[2],
                "first_seen": s[3],
                "last_seen": s[4],
                "created_at": now_us,
            }
            for s in seen
        ]
        with self._begin(f"registering sensors of {topic}[{partition}]") as connection:
            insert = _insert(connection.dialect.name)
            if records:
                new = insert(sensors)
                connection.execute(
                    new.on_conflict_do_update(
                        index_elements=["sensor_id"],
                        set_={
                            "type": sa.func.coalesce(new.excluded.type, sensors.c.type),
                            "location": sa.func.coalesce(new.excluded.location, sensors.c.location),
                            "first_seen": _lesser(sensors.c.first_seen, new.excluded.first_seen),
                            "last_seen": _greater(sensors.c.last_seen, new.excluded.last_seen),
                        },
                    ),
                    records,
                )
            place = insert(positions).values(reader=reader, topic=topic, partition=partition, offset=end)
            connection.execute(
                place.on_conflict_do_update(
                    index_elements=["reader", "topic", "partition"],
                    set_={"offset": _greater(positions.c.offset, place.excluded.offset)},
                )
            )

    def position(self, reader: str, topic: str, partition: int) -> int:
        """The next offset that a reader wants; 0 at first."""
        chosen = sa.select(positions.c.offset).where(
            positions.c.reader == reader, positions.c.topic == topic, positions.c.partition == partition
        )
        with self._begin(f"reading the position of {reader}") as connection:
            return connection.scalar(chosen) or 0

    def _begin(self, doing: str) -> _Work:
        if self._engine is None:
            self.open()
        assert self._engine is not None
        return _Work(self._engine, doing)


class _Work:
    """One transaction; what the database raises says what was being done."""

    def __init__(self, engine: sa.Engine, doing: str) -> None:
        self._engine, self._doing = engine, doing

    def __enter__(self) -> sa.Connection:
        try:
            self._context = self._engine.begin()
            return self._context.__enter__()
        except sa.exc.DBAPIError as error:
            raise RetryableError(f"{self._doing} in the catalog: {error.orig}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self._context.__exit__(kind, error, tb)
        except sa.exc.DBAPIError as failure:
            raise RetryableError(f"{self._doing} in the catalog: {failure.orig}") from failure
        if isinstance(error, sa.exc.DBAPIError):
            raise RetryableError(f"{self._doing} in the catalog: {error.orig}") from error


def sensors_table(rows: Sequence[Any], *, since_us: int = 0) -> pa.Table:
    """Rows of the sensors table as Arrow; online are those last seen at `since_us` or later."""
    columns = {name: [getattr(row, name) for row in rows] for name in SENSORS.names[:-1]}
    columns["online"] = [row.last_seen >= since_us for row in rows]
    return pa.table([pa.array(columns[f.name], f.type) for f in SENSORS], schema=SENSORS)


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    except (sa.exc.ArgumentError, ImportError, ModuleNotFoundError) as error:
        raise ConfigError(f"catalog: {url!r} is not a database URL that works here: {error}") from error
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigError(f"catalog: {engine.dialect.name} is not supported; sqlite and postgresql are")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _on_sqlite_connect)
    return engine


def _on_sqlite_connect(connection: Any, _: Any) -> None:
    # WAL: readers (a second process too) never wait for a writer. FULL: committed means on disk.
    for pragma in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _insert(dialect: str) -> Any:
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert
    from sqlalchemy.dialects import sqlite

    return sqlite.insert


def _lesser(a: Any, b: Any) -> Any:
    return sa.case((b < a, b), else_=a)


def _greater(a: Any, b: Any) -> Any:
    return sa.case((b > a, b), else_=a)
