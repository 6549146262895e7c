"""Add columns from a table that may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.analysis.columns import Pick, pick_key
from headrace.analysis.groups import Ids
from headrace.component import Duration, Operator, PlanError, RetryableError, Rows, Step, option
from headrace.expression import unknown_column
from headrace.model import type_named

_NEVER_US = -(2**62)


class Enrich(Step, frozen=True, kw_only=True):
    """Add columns of a table to the rows whose keys are in it.

    The table is a CSV, Parquet, JSON or NDJSON file, or a SQL query on a database. It is read when the pipeline
    starts, and again when `reload` has passed and, for a file, it has changed; if that fails, the old one stays in use.
    Where a key stands in the table more than once, the last row counts. Without a match the new columns are null, or,
    with `how: inner`, the row is left out and counts as filtered. Null keys match nothing.

    Types are those found in the table when the pipeline starts; a later table is brought to them. `types` says them
    beforehand, so that `headrace check` needn't read the table.

        - enrich: {table: sensors.csv, on: {source_id: sensor_id}, columns: [type, location]}
        - enrich: {table: "postgresql://localhost/plant", query: "select id, room from sensors", on: {source_id: id}}
    """

    shape: ClassVar[Literal["map", "filter", "expand", "absorb"]] = "filter"

    table: Annotated[
        str, option("path of a .csv, .parquet, .json or .ndjson file, or an SQLAlchemy URL", min_length=1)
    ]
    on: Annotated[
        dict[str, str] | str, option("column here and column of the table; one name if they are the same")
    ]
    query: Annotated[str, option("SQL that gives the table, when `table` is a URL")] = ""
    columns: Annotated[
        dict[str, str] | list[str],
        option("columns to add: names, or new name and name in the table; default all but the keys"),
    ] = msgspec.field(default_factory=list)
    types: Annotated[dict[str, str], option("type of each added column by its new name")] = msgspec.field(
        default_factory=dict
    )
    how: Annotated[Literal["left", "inner"], option("keep rows without a match, or leave them out")] = "left"
    reload: Annotated[Duration, option("how often to look for a new table; 0s means never")] = Duration(
        60_000_000
    )
    max_rows: Annotated[int, option("most rows of the table; a larger one is refused", ge=1)] = 5_000_000

    @classmethod
    def example(cls) -> Self:
        return cls(
            table=str(Path(__file__).with_name("enrich_example.csv")),
            on={"source_id": "sensor_id"},
            columns=["type", "floor"],
        )

    def check(self) -> None:
        if not self._on():
            raise PlanError("on: name at least one column")
        if self._is_url() != bool(self.query):
            raise PlanError(
                "query: belongs to a table that is a database URL" if self.query else "query: give the SQL"
            )
        if not self._is_url() and Path(self.table).suffix.lower() not in _READERS:
            raise PlanError(f"table: {self.table!r} is none of {', '.join(_READERS)}, and no database URL")

    def connect(self) -> None:
        self._read({})

    def asks(self) -> str:
        if self._declared():
            return ""
        if self._is_url():
            return f"the database {self._shown()}"
        return "" if Path(self.table).exists() else f"the file {self._shown()}, which is not there"

    def output(self, schema: pa.Schema) -> pa.Schema:
        keys = self._keys(schema)
        declared = self._declared()
        return self._with(schema, declared or self._types(self._read(keys)))

    def open(self, schema: pa.Schema) -> Operator:
        keys = self._keys(schema)
        table = self._read(keys)
        return _Enrich(self, keys, table, self._with(schema, self._types(table)), len(schema))

    def _on(self) -> dict[str, str]:
        return {self.on: self.on.rpartition(".")[2]} if isinstance(self.on, str) else self.on

    def _is_url(self) -> bool:
        return "://" in self.table

    def _keys(self, schema: pa.Schema) -> dict[str, Pick]:
        """Column of the table -> column here."""
        self.check()
        return {
            right: pick_key(schema, left, step="enrich", option="on") for left, right in self._on().items()
        }

    def _wanted(self, table: pa.Table | None) -> dict[str, str]:
        """New name -> name in the table; nothing as long as that needs the table."""
        if isinstance(self.columns, dict):
            return self.columns
        if self.columns:
            return {name: name for name in self.columns}
        keys = set(self._on().values())
        return {name: name for name in table.column_names if name not in keys} if table is not None else {}

    def _declared(self) -> dict[str, pa.DataType]:
        """New columns with their types, if the options say them all; else nothing."""
        wanted = self._wanted(None)
        if not set(wanted) <= self.types.keys():
            return {}
        return {name: type_named(self.types[name], name) for name in wanted}

    def _types(self, table: pa.Table) -> dict[str, pa.DataType]:
        types = {}
        for name, source in self._wanted(table).items():
            if source not in table.column_names:
                raise PlanError(f"columns: {self._shown()}: {unknown_column(source, table.schema)}")
            found = _plain(table.schema.field(source).type)
            types[name] = type_named(self.types[name], name) if name in self.types else found
        return types

    def _with(self, schema: pa.Schema, types: Mapping[str, pa.DataType]) -> pa.Schema:
        for name in types:
            if name in schema.names:
                raise PlanError(
                    f"columns: there is a column {name!r} already; give the new one a name: {{other: {name}}}"
                )
        return pa.schema([*schema, *(pa.field(n, t) for n, t in types.items())], metadata=schema.metadata)

    def _shown(self) -> str:
        """The table for messages, without a password."""
        if not self._is_url():
            return self.table
        scheme, _, rest = self.table.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"

    def _read(self, keys: Mapping[str, Pick]) -> pa.Table:
        """The table. Raises PlanError when it can't be right and RetryableError when it can't be reached."""
        try:
            if self._is_url():
                table = _read_sql(self.table, self.query, self.max_rows)
            else:
                table = _READERS[Path(self.table).suffix.lower()](
                    self.table, {name: key.type for name, key in keys.items() if not key.unseen}
                )
        except FileNotFoundError:
            where = Path(self.table).absolute()
            raise PlanError(f"table: there is no file {where}; put it there, or correct the path") from None
        except (OSError, pa.ArrowException, ValueError) as error:
            raise RetryableError(f"enrich: reading {self._shown()}: {error}") from error
        if table.num_rows > self.max_rows:
            raise PlanError(f"enrich: {self._shown()} has {table.num_rows} rows; max_rows is {self.max_rows}")
        for name in keys:
            if name not in table.column_names:
                raise PlanError(f"on: {self._shown()}: {unknown_column(name, table.schema)}")
        return table


def _plain(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if pa.types.is_null(type_) or pa.types.is_decimal(type_):
        return pa.float64()
    if pa.types.is_large_string(type_):
        return pa.string()
    return pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(type_) else type_


def _read_csv(path: str, types: Mapping[str, pa.DataType]) -> pa.Table:
    from pyarrow import csv

    # Keys are read as the type they have here: "007" must not become 7.
    return csv.read_csv(
        path, convert_options=csv.ConvertOptions(column_types=dict(types), strings_can_be_null=True)
    )


def _read_parquet(path: str, types: Mapping[str, pa.DataType]) -> pa.Table:
    from pyarrow import parquet

    return parquet.read_table(path)


def _read_json(path: str, types: Mapping[str, pa.DataType]) -> pa.Table:
    """A JSON array of objects, or one object a line."""
    text = Path(path).read_bytes()
    if text.lstrip().startswith(b"["):
        rows = msgspec.json.decode(text, type=list[dict[str, Any]])
    else:
        rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in text.splitlines() if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)  # the first row needn't have them all
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _read_sql(url: str, query: str, max_rows: int) -> pa.Table:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(url)
        try:
            with engine.connect() as connection:
                result = connection.execute(sqlalchemy.text(query))
                names, rows = list(result.keys()), result.fetchmany(max_rows + 1)
        finally:
            engine.dispose()
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise PlanError(f"enrich: table: {error}") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise RetryableError(f"enrich: {str(error).splitlines()[0]}") from error
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table({name: pa.array(column) for name, column in zip(names, columns, strict=True)})


_READERS = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".ndjson": _read_json,
    ".jsonl": _read_json,
}


class _Lookup:
    """The table in memory: from key values to its rows."""

    def __init__(
        self,
        table: pa.Table,
        keys: Mapping[str, Pick],
        names: Mapping[str, str],
        types: Sequence[pa.DataType],
    ) -> None:
        self._levels: list[tuple[dict[Any, int], Ids]] = []
        total, bad = np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows, np.bool_)
        for name, key in keys.items():
            column = _one(table.column(name))
            encoded = pc.dictionary_encode(column if key.unseen else pc.cast(column, key.type))
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            values = {value: code for code, value in enumerate(encoded.dictionary.to_pylist())}
            bad |= codes < 0
            # Numbered anew after each column, so that the product stays below rows * rows.
            known, total = np.unique(total * (len(values) + 1) + codes, return_inverse=True)
            self._levels.append((values, known))
        rows = np.flatnonzero(~bad)
        self._row_of: Ids = np.full(len(known) + 1, -1, np.int64)
        self._row_of[total[rows]] = rows  # of equal keys the last row stays
        self.added = [
            pc.cast(_one(table.column(source)), t) for source, t in zip(names.values(), types, strict=True)
        ]

    def find(self, columns: Sequence[pa.Array]) -> Ids:
        """The table's row for each key, -1 without a match. Python loops over distinct values only."""
        total, bad = np.zeros(len(columns[0]), np.int64), np.zeros(len(columns[0]), np.bool_)
        for column, (values, known) in zip(columns, self._levels, strict=True):
            if not len(known):
                return np.full(len(total), -1, np.int64)
            encoded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
            found = np.array(
                [*(values.get(value, -1) for value in encoded.dictionary.to_pylist()), -1], np.int64
            )
            codes = found[encoded.indices.fill_null(len(found) - 1).to_numpy(zero_copy_only=False)]
            wanted = total * (len(values) + 1) + codes
            total = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            bad |= (codes < 0) | (known[total] != wanted)
        rows: Ids = np.where(bad, -1, self._row_of[total])
        return rows


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


class _Enrich(Operator):
    def __init__(
        self, step: Enrich, keys: dict[str, Pick], table: pa.Table, schema: pa.Schema, width: int
    ) -> None:
        self._step, self._keys, self._schema = step, keys, schema
        self._types = [field.type for field in list(schema)[width:]]
        self._names = step._wanted(table)
        self._mark = self._file_mark()
        self._looked_us = _NEVER_US
        self.problem = ""
        try:
            self._lookup = _Lookup(table, keys, self._names, self._types)
        except pa.ArrowException as error:
            raise PlanError(f"{step._shown()}: {error}; say `types`, or correct the table") from error

    def process(self, rows: Rows, watermark_us: int) -> Rows:
        found = self._lookup.find([key.of(rows) for key in self._keys.values()])
        if self._step.how == "inner" and (found < 0).any():
            rows, found = rows.filter(pa.array(found >= 0)), found[found >= 0]
        at = pa.array(found, mask=found < 0)
        added = [column.take(at) for column in self._lookup.added]
        return pa.RecordBatch.from_arrays([*rows.columns, *added], schema=self._schema)

    def refresh(self, now_us: int) -> None:
        """Read the table again when it is time and, for a file, when it has changed."""
        every = self._step.reload.us
        if not every or now_us - self._looked_us < every:
            return
        first, self._looked_us = self._looked_us == _NEVER_US, now_us
        mark = self._file_mark()
        if (mark is not None and mark == self._mark and not self.problem) or (
            mark is None and first and self._step._is_url()
        ):
            return
        try:
            self._lookup = _Lookup(self._step._read(self._keys), self._keys, self._names, self._types)
        except (PlanError, RetryableError, KeyError, pa.ArrowException) as error:
            self.problem = f"the table of before stays in use: {error}"
        else:
            self._mark, self.problem = mark, ""

    def _file_mark(self) -> tuple[int, int] | None:
        """Changes whenever the file does; None for a database, or while there is no file."""
        if self._step._is_url():
            return None
        try:
            status = Path(self._step.table).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size
