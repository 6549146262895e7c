"""enrich: look-up in files and databases, reload, and a failed reload that keeps the old table."""

import json
import os
import sqlite3

import pyarrow as pa
import pytest
from pyarrow import parquet

from headrace.component import Duration
from headrace.errors import PlanError, RetryableError
from headrace.steps.enrich import Enrich

ROWS = pa.RecordBatch.from_pydict(
    {"id": pa.array(["007", "8", None, "9"]), "zone": pa.array([1, 2, 1, None], pa.int64())}
)
CSV = "id,name,floor\n007,bond,7\n8,old,1\n8,eight,2\n,nobody,0\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    return path


def run(rows=ROWS, **options):
    step = Enrich(**options)
    result = step.open(rows.schema).process(rows, 0)
    assert result.schema.equals(step.output(rows.schema), check_metadata=True)
    return result


def test_the_last_row_of_a_key_counts_and_null_matches_nothing(table):
    result = run(table=str(table), on="id")
    assert result.column("name").to_pylist() == ["bond", "eight", None, None]
    assert result.column("floor").to_pylist() == [7, 2, None, None]
    assert result.schema.names == ["id", "zone", "name", "floor"]


def test_inner_leaves_rows_out_and_columns_can_be_chosen_and_renamed(table):
    result = run(table=str(table), on={"id": "id"}, how="inner", columns={"level": "floor"})
    assert result.to_pylist() == [{"id": "007", "zone": 1, "level": 7}, {"id": "8", "zone": 2, "level": 2}]


def test_several_key_columns(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(
        pa.table({"a": ["007", "007", "8", "8"], "z": [1, 2, 2, 3], "v": [10, 20, 30, 40]}), path
    )
    assert run(table=str(path), on={"id": "a", "zone": "z"}).column("v").to_pylist() == [10, 30, None, None]


@pytest.mark.parametrize("lines", [True, False])
def test_json_and_ndjson(tmp_path, lines):
    data = [{"id": "8", "v": 1.5}, {"id": "9", "w": True}]
    path = tmp_path / ("t.ndjson" if lines else "t.json")
    path.write_text("\n".join(json.dumps(row) for row in data) if lines else json.dumps(data))
    result = run(table=str(path), on="id")
    assert result.column("v").to_pylist() == [None, 1.5, None, None]
    assert result.column("w").to_pylist() == [None, None, None, True]


def test_a_query_on_a_database(tmp_path):
    path = tmp_path / "t.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table s (k integer, room text)")
        connection.execute("insert into s values (1, 'lab'), (2, 'hall')")
    connection.close()
    options = {"table": f"sqlite:///{path}", "query": "select k, room from s", "on": {"zone": "k"}}
    assert run(**options).column("room").to_pylist() == ["lab", "hall", "lab", None]


def test_an_empty_table_matches_nothing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,v\n")
    assert run(table=str(path), on="id", types={"v": "string"}).column("v").to_pylist() == [None] * 4


def test_a_changed_file_is_read_again_and_a_broken_one_is_not_used(table):
    operator = Enrich(table=str(table), on="id", reload=Duration.parse("10s")).open(ROWS.schema)
    names = lambda: operator.process(ROWS, 0).column("name").to_pylist()[:2]  # noqa: E731
    now = 1_700_000_000_000_000
    operator.refresh(now)
    table.write_text("id,name,floor\n8,new,12\n")
    os.utime(table, ns=(1, 1))
    operator.refresh(now + 1_000_000)
    assert names() == ["bond", "eight"]  # not yet time
    operator.refresh(now + 11_000_000)
    assert names() == [None, "new"]
    table.write_text("other,columns\n1,2\n")
    operator.refresh(now + 22_000_000)
    assert names() == [None, "new"]
    assert "stays in use" in operator.problem
    table.unlink()
    operator.refresh(now + 33_000_000)
    assert "no file" in operator.problem
    table.write_text("id,name,floor\n8,text,none\n")  # floor was a number
    operator.refresh(now + 44_000_000)
    assert names() == [None, "new"]
    table.write_text(CSV)
    operator.refresh(now + 55_000_000)
    assert names() == ["bond", "eight"]
    assert operator.problem == ""


def test_declared_types_need_no_table_to_be_checked():
    step = Enrich(table="/nowhere/t.csv", on="id", columns=["name"], types={"name": "string"})
    assert step.output(ROWS.schema).field("name").type == pa.string()
    with pytest.raises(PlanError, match=r"there is no file .*t.csv; put it there"):
        step.open(ROWS.schema)


def test_an_unreachable_database_is_worth_another_try(tmp_path):
    step = Enrich(table=f"sqlite:////{tmp_path}/no/such/dir/x.db", query="select 1 as id", on="id")
    with pytest.raises(RetryableError, match="unable to open"):
        step.open(ROWS.schema)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": {}}, "at least one column"),
        ({"on": "ident"}, "'ident'"),
        ({"on": {"id": "key"}}, "no column 'key'"),
        ({"on": "id", "columns": ["nome"]}, "did you mean 'name'"),
        ({"on": "id", "columns": {"zone": "floor"}}, "a column 'zone' already"),
        ({"on": "id", "query": "select 1"}, "database URL"),
        ({"on": "id", "table": "t.xlsx"}, "none of .csv"),
        ({"on": "id", "table": "sqlite://"}, "give the SQL"),
        ({"on": "id", "table": "nosuch://x", "query": "select 1"}, "nosuch"),
        ({"on": "id", "types": {"name": "texty"}}, "no type 'texty'"),
        ({"on": "id", "max_rows": 2}, "max_rows is 2"),
        ({"on": "id", "types": {"name": "int"}}, "say `types`"),
    ],
)
def test_what_is_wrong_is_said(table, options, message):
    with pytest.raises(PlanError) as error:
        Enrich(**{"table": str(table), **options}).open(ROWS.schema)
    assert message in str(error.value)


def test_a_password_is_not_shown():
    step = Enrich(table="sqlite://user:secret@host/x", query="select 1", on="id")
    assert "secret" not in step._shown()
