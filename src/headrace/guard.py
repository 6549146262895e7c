"""What SQL from outside may do: read the known tables with one statement, and nothing else.

DuckDB itself is closed as well (no files, no network, configuration locked); this is the first of the two fences.
It works on DuckDB's own syntax tree, so what is checked is what runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import msgspec

from headrace.errors import QueryError

MAX_SQL_BYTES = 100_000

_TABLE_FUNCTIONS = frozenset(
    {"range", "generate_series", "unnest", "json_each", "json_tree", "repeat_row", "summary"}
)
"""Table functions that read nothing but their arguments. All others are refused: many read files, and some take
raw pointers."""

_REFUSED_FUNCTIONS = frozenset(
    {
        # tell about the process and its settings, or change something
        "getenv", "current_setting", "which_secret", "write_log", "nextval", "currval", "setseed",
        "json_execute_serialized_sql", "query", "query_table", "getvariable",
        # make gigabytes from a short text in one call, which neither the memory limit nor the timer can stop
        "repeat", "lpad", "rpad", "list_resize", "array_resize", "bitstring", "printf", "format", "range",
        "generate_series",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checked:
    """A statement that passed: its text, the known tables it mentions, and whether it is SHOW TABLES."""

    sql: str
    tables: tuple[str, ...]
    show_tables: bool = False


def check(connection: duckdb.DuckDBPyConnection, sql: str, known: Collection[str]) -> Checked:
    """Raise QueryError, saying what to do instead, unless `sql` is one statement that only reads tables in `known`."""
    statement = _single(connection, sql)
    tree = _tree(connection, statement)
    ctes = {str(entry["key"]).lower() for node in _walk(tree) for entry in _cte_entries(node)}
    names = {name.lower(): name for name in known}
    mentioned: dict[str, None] = {}
    show_tables = False
    for node in _walk(tree):
        kind = node.get("type")
        if kind == "BASE_TABLE":
            _refuse_qualified(node)
            table = str(node["table_name"])
            if table.lower() in names:
                mentioned[names[table.lower()]] = None
            elif table.lower() not in ctes:
                raise unknown_table(table, known)
        elif kind == "SHOW_REF" and node.get("query") is None:
            table = str(node["table_name"]).strip('"')
            if node["show_type"] == "SHOW" and table.lower() in names:
                mentioned[names[table.lower()]] = None
            elif node["show_type"] == "SHOW_SPECIAL" and table == "tables":
                show_tables = True
            elif node["show_type"] == "SHOW":
                raise unknown_table(table, known)
            else:
                raise QueryError(
                    f"SHOW {table.upper()} is not available; SHOW TABLES, DESCRIBE table and SUMMARIZE table are"
                )
        elif kind == "TABLE_FUNCTION":
            function = str(node["function"]["function_name"]).lower()
            if function not in _TABLE_FUNCTIONS or len(node["function"]["qualified_name"]["path"]) != 1:
                raise QueryError(
                    f"{function}() is not available here: queries read the tables {_listed(known)}, no files or other places"
                )
            node["function"]["function_name"] = (
                ""  # allowed as a table; the same name as a value may be refused
            )
        elif node.get("class") == "FUNCTION" and str(node["function_name"]).lower() in _REFUSED_FUNCTIONS:
            raise QueryError(f"{node['function_name']}() is not available in queries")
    return Checked(statement, tuple(mentioned), show_tables)


def unknown_table(name: str, known: Collection[str]) -> QueryError:
    near = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    return QueryError(f"there is no table {name!r}; {hint}there are {_listed(known)}")


def explain(error: Exception, timeout: float) -> QueryError:
    """What DuckDB said, as something that whoever wrote the query can act on."""
    text = str(error)
    if "INTERRUPT" in text:
        return QueryError(
            f"the query took longer than {timeout:g} s; ask for less (a shorter time range, fewer columns) or allow more time"
        )
    if "Out of Memory" in text:
        return QueryError(
            "the query needs more memory than it may use; filter by time or key, or aggregate before joining and sorting"
        )
    # Hints about DuckDB's settings would mislead: they are locked.
    return QueryError(text.split("\n\nPossible solutions")[0].removeprefix("INTERNAL Error: ").strip())


def _single(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    if len(sql.encode("utf-8", "replace")) > MAX_SQL_BYTES:
        raise QueryError(f"the query is longer than {MAX_SQL_BYTES} bytes; put long lists into parameters")
    if "\0" in sql or any("\ud800" <= c <= "\udfff" for c in sql):
        raise QueryError("the query has characters that are not text")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise explain(error, 0) from error
    if len(statements) != 1:
        raise QueryError(
            f"one statement is expected, not {len(statements)}"
            if statements
            else "the query is empty; write for instance SHOW TABLES"
        )
    kind = statements[0].type
    if kind not in (duckdb.StatementType.SELECT,):
        name = kind.name.replace("_", " ").upper() if hasattr(kind, "name") else str(kind)
        raise QueryError(
            f"{name} is not allowed: queries only read (SELECT, WITH, FROM, DESCRIBE, SUMMARIZE, SHOW TABLES)"
        )
    return str(statements[0].query).rstrip().rstrip(";")


def _tree(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0]
    tree = msgspec.json.decode(row[0])
    if tree.get("error") or len(tree.get("statements", ())) != 1:
        raise QueryError(
            f"only plain SELECT statements are allowed: {tree.get('error_message', 'the statement is of another kind')}"
        )
    return tree["statements"][0]


def _walk(tree: Any) -> Iterator[dict[str, Any]]:
    """All nodes, parents first, without recursion: a query may be nested deeper than Python's stack."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _cte_entries(node: dict[str, Any]) -> list[dict[str, Any]]:
    ctes = node.get("cte_map")
    return ctes.get("map", []) if isinstance(ctes, dict) else []


def _refuse_qualified(node: dict[str, Any]) -> None:
    if node.get("schema_name") or node.get("catalog_name"):
        path = ".".join(node["qualified_name"]["path"])
        raise QueryError(f"{path}: tables have no schema here; write {node['table_name']}")
    if node.get("at_clause"):
        raise QueryError(f"{node['table_name']}: older versions can't be asked for (AT)")


def _listed(known: Collection[str]) -> str:
    return ", ".join(sorted(known)) or "none yet"
