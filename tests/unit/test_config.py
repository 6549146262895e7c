"""Reading a configuration: what comes out, and every mistake with its place."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import Config, build, load_config
from headrace.config_reader import Reader
from headrace.errors import ConfigError
from headrace.model import TIMESTAMP
from headrace.old_config import modernise
from headrace.units import Duration, Size
from headrace.yaml_positions import parse, substitute
from tests.unit.sample_components import Thermometer, fields

SOURCE = 'sources:\n  t:\n    kind: "tests.unit.sample_components:Thermometer"\n'


def read(tmp_path: Path, text: str, *, name: str = "headrace.yaml", **options: object) -> Config:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    options.setdefault("env", {})
    return load_config(path, **options)  # type: ignore[arg-type]


def problems(tmp_path: Path, text: str, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, **options)
    return [str(p).replace(f"{tmp_path}/", "") for p in caught.value.problems]


def test_options_take_their_types(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        SOURCE
        + """    interval: 1m30s
    rate: 2
    buffer: 2MiB
    rooms: kitchen
    labels: {floor: "1"}
    limits: {low: -3.5, high: 40}
    to: temperatures
    enabled: false
""",
    )
    entry = config.sources["t"]
    assert (entry.name, entry.topic, entry.enabled) == ("t", "temperatures", False)
    source = entry.source
    assert isinstance(source, Thermometer)
    assert source.interval == Duration.parse("90s")
    assert source.rate == 2.0
    assert source.buffer == Size(2 * 2**20)
    assert source.rooms == ("kitchen",)
    assert source.labels == {"floor": "1"}
    assert source.limits is not None
    assert (source.limits.low, source.limits.high) == (-3.5, 40.0)


def test_all_mistakes_are_shown_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
topics:
  hot: {partitons: 3}
sources:
  t:
    kind: "tests.unit.sample_components:Thermometer"
    interval: 10x
    rate: 5000
    mode: fsat
    limits: {low: no, hihg: 4}
    token: 123
  u: {kind: "tests.unit.sample_components:Thermometer", mode: slow, rate: 200}
pipelines:
  p: {from: events, steps: ["tests.unit.sample_components:Keep": {column: x}], to: hot}
server: {port: 99999}
sinkss: 3
"""
    assert problems(tmp_path, text) == [
        "headrace.yaml:2:9: topics.hot.partitons: unknown option; did you mean partitions?",
        "headrace.yaml:6:15: sources.t.interval: '10x' is not a duration; write for instance 10s, 500ms or 1h30m",
        "headrace.yaml:7:11: sources.t.rate: must be more than 0 and at most 1000, not 5000",
        "headrace.yaml:8:11: sources.t.mode: 'fsat' is not one of fast, slow; did you mean fast?",
        "headrace.yaml:9:19: sources.t.limits.low: a number is expected, not 'no'",
        "headrace.yaml:9:23: sources.t.limits.hihg: unknown option; did you mean high?",
        "headrace.yaml:10:12: sources.t.token: a text is expected, not the number 123; write it in quotes",
        "headrace.yaml:11:6: sources.u: a slow thermometer gives at most 100 readings a second",
        "headrace.yaml:13:66: pipelines.p.steps[0].tests.unit.sample_components:Keep: columns is missing: columns to keep",
        "headrace.yaml:13:67: pipelines.p.steps[0].tests.unit.sample_components:Keep.column: unknown option; did you mean columns?",
        "headrace.yaml:14:16: server.port: must be at least 0 and at most 65535, not 99999",
        "headrace.yaml:15:1: sinkss: unknown key; did you mean sinks?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2", "headrace.yaml:2:1: a: is given twice; first in line 1"),
        ("sources: [1]", "headrace.yaml:1:10: sources: a mapping of names to sources is expected, not a list"),
        ("- 1", "headrace.yaml:1:1: a mapping with topics, sources, pipelines, sinks, server, engine, log, data_dir is expected, not a list"),
        ("sources: {t: 5}", "headrace.yaml:1:14: sources.t: a mapping is expected, not 5"),
        ("sources: {t: {kind: 5}}", "headrace.yaml:1:21: sources.t.kind: a text is expected, not the number 5; write it in quotes"),
        ("sources: {'a b': {kind: x}}", "headrace.yaml:1:11: sources.a b: a name has letters, digits, _ and -, at most 63, and begins with a letter or digit"),
        ("sources: {t: {kind: 'json:loads'}}", "headrace.yaml:1:21: sources.t.kind: 'json:loads' names no source; "),
        ("sources: {t: {kind: 'no_such_package:X'}}", "headrace.yaml:1:21: sources.t.kind: no_such_package:X can't be imported: No module named 'no_such_package'"),
        ("sources: {t: {kind: 'tests.unit.sample_components:Keep', columns: a}}", "headrace.yaml:1:21: sources.t.kind: tests.unit.sample_components:Keep is not a source"),
        ("x: !!python/object:os.system {}", "headrace.yaml:1:4: x: the tag tag:yaml.org,2002:python/object:os.system is not allowed here"),
        ("x: !!python/name:os.system z", "headrace.yaml:1:4: x: the tag tag:yaml.org,2002:python/name:os.system is not allowed here"),
        ("x: [1", "headrace.yaml:1:6: not valid YAML"),
        ("x: &a [*a]", "headrace.yaml:1:4: x[0]: an alias here contains itself"),
        ("? [a]\n: 1", "headrace.yaml:1:3: a key must be a plain text"),
        ("log: kafkaa", "headrace.yaml:1:6: log: there is no log 'kafkaa'"),
        ("topics: {sensors: {}}", "headrace.yaml:1:10: topics.sensors: sensors is the table of known sensors"),
        ("topics: {a: {schema: {b: {c: dubble}}}}", "headrace.yaml:1:30: topics.a.schema.b.c: 'dubble' is not a type; did you mean double?"),
        ("topics: {a: {schema: {b: int}, at: b}}", "headrace.yaml:1:36: topics.a.at: 'b' is not a column with a timestamp; there is none"),
        ("topics: {a: {schema: {b: int}, key: [c]}}", "headrace.yaml:1:37: topics.a.key: there is no column 'c'"),
        ("topics: {events: {}, Events: {}}", "headrace.yaml:1:30: topics.Events: differs from topic events only by case"),
        ("pipelines: {p: {to: x}}", "headrace.yaml:1:16: pipelines.p: from is missing"),
        ("pipelines: {p: {from: events}}", "headrace.yaml:1:16: pipelines.p: to is missing"),
        ("pipelines: {p: {from: [], to: x}}", "headrace.yaml:1:23: pipelines.p.from: name at least one topic"),
        ("pipelines: {p: {from: evnts, to: x}}", "headrace.yaml:1:23: pipelines.p.from: there is no topic 'evnts'; did you mean events?"),
        ("pipelines: {p: {from: events, step: [], to: x}}", "headrace.yaml:1:31: pipelines.p.step: unknown option; did you mean steps?"),
        ("pipelines: {p: {from: events, steps: [7], to: x}}", "headrace.yaml:1:39: pipelines.p.steps[0]: a step is `kind: options`; not 7"),
        ("pipelines: {p: {from: events, to: events}}", "headrace.yaml:1:16: pipelines.p: reads what it writes itself: p <- p"),
        ("sinks: {s: {kind: 'tests.unit.sample_components:Nowhere', from: hot}}", "headrace.yaml:1:65: sinks.s.from: there is no topic 'hot'"),
        ("sinks: {s: {kind: 'tests.unit.sample_components:Nowhere', from: events, start: now}}", "headrace.yaml:1:80: sinks.s.start: 'now' is not one of earliest, latest"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_where_it_stands(tmp_path: Path, text: str, expected: str) -> None:
    assert any(p.startswith(expected) for p in problems(tmp_path, text)), problems(tmp_path, text)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load_config(tmp_path / "none.yaml", env={})
    (tmp_path / "latin.yaml").write_bytes(b"log: sqlite\nx: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2:4: is not UTF-8"):
        load_config(tmp_path / "latin.yaml", env={})


def test_nested_aliases_can_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "aliases grow this file beyond" in problems(tmp_path, "\n".join(lines))[0]


def test_deep_nesting_is_a_mistake_not_a_crash(tmp_path: Path) -> None:
    assert "nested too deeply" in problems(tmp_path, "x: " + "[" * 20_000)[0]


def test_anchors_and_merges_work_and_what_is_written_out_wins(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
sources:
  a: &a {kind: "tests.unit.sample_components:Thermometer", devices: 4, rate: 9}
  b: {<<: *a, devices: 5}
""",
    )
    assert [config.sources[n].source.devices for n in "ab"] == [4, 5]  # type: ignore[attr-defined]
    assert config.sources["b"].source.rate == 9  # type: ignore[attr-defined]


def test_words_that_old_yaml_took_for_booleans_are_texts(tmp_path: Path) -> None:
    config = read(tmp_path, SOURCE + "    rooms: [on, no, 1:30, 2020-01-01]\n")
    assert config.sources["t"].source.rooms == ("on", "no", "1:30", "2020-01-01")  # type: ignore[attr-defined]


def test_json_is_accepted_with_tabs_and_escapes(tmp_path: Path) -> None:
    value = {"sources": {"t": {"kind": "tests.unit.sample_components:Thermometer", "token": "a/b 😀"}}}
    text = json.dumps(value, indent="\t").replace("/", "\\/")
    config = read(tmp_path, text, name="config.json")
    assert config.sources["t"].source.token == "a/b 😀"  # type: ignore[attr-defined]


# -- environment -------------------------------------------------------------------------------------


def test_variables_fill_values_and_become_what_the_option_needs(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        SOURCE
        + """    devices: ${DEVICES}
    interval: "${INTERVAL:-250ms}"
    verbose: ${VERBOSE:-true}
    token: pre-${TOKEN}-$$5-$x
    mode: ${MODE:-slow}
    rooms: ["${ROOM:-hall}"]
""",
        env={"DEVICES": "12", "TOKEN": "s:e{c}r'et"},
    )
    assert fields(config.sources["t"].source) | {"limits": None} == {
        "interval": Duration.parse("250ms"), "rate": 1.0, "devices": 12, "buffer": None, "mode": "slow", "labels": {},
        "rooms": ("hall",), "limits": None, "verbose": True, "token": "pre-s:e{c}r'et-$5-$x",
    }  # fmt: skip


def test_a_variable_without_value_and_default_is_a_mistake_there(tmp_path: Path) -> None:
    found = problems(tmp_path, SOURCE + "    token: a${NOPE}\n    devices: ${BAD}\n", env={"BAD": "many"})
    assert found == [
        "headrace.yaml:4:12: sources.t.token: the environment variable NOPE is not set; set it or write ${NOPE:-default}",
        "headrace.yaml:5:14: sources.t.devices: a whole number is expected, not 'many'",
    ]


def test_an_env_file_beside_the_config_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# secrets\nexport TOKEN='x y' \nDEVICES=3 # three\n")
    text = SOURCE + "    token: ${TOKEN}\n    devices: ${DEVICES}\n"
    source = read(tmp_path, text, env={"DEVICES": "5"}).sources["t"].source
    assert (source.token, source.devices) == ("x y", 5)  # type: ignore[attr-defined]


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    text = f"data_dir: {tmp_path}/a\nserver: {{port: 1, host: a}}\n"
    env = {"HEADRACE_DATA_DIR": str(tmp_path / "b"), "HEADRACE_PORT": "2", "HEADRACE_HOST": "b"}
    plain = read(tmp_path, text)
    assert (plain.data_dir, plain.server.port, plain.server.host) == (tmp_path / "a", 1, "a")
    from_env = read(tmp_path, text, env=env)
    assert (from_env.data_dir, from_env.server.port, from_env.server.host) == (tmp_path / "b", 2, "b")
    flags = read(tmp_path, text, env=env, data_dir=tmp_path / "c", port=3, host="c")
    assert (flags.data_dir, flags.server.port, flags.server.host) == (tmp_path / "c", 3, "c")
    assert problems(tmp_path, text, env={"HEADRACE_PORT": "http"}) == [
        "HEADRACE_PORT: 'http' is not a port number"
    ]


# -- --set -------------------------------------------------------------------------------------------


def test_set_lays_values_over_the_file(tmp_path: Path) -> None:
    text = (
        SOURCE
        + "    rooms: [a, b]\npipelines:\n  p: {from: events, steps: ['tests.unit.sample_components:Keep': timestamp], to: x}\n"
    )
    config = read(
        tmp_path,
        text,
        sets=[
            "sources.t.interval=5s",
            "sources.t.rooms[1]=c",
            "server.port=0",
            "pipelines.p.steps.0={'tests.unit.sample_components:Keep': [timestamp, source_id]}",
        ],
    )
    assert config.sources["t"].source.interval == Duration.parse("5s")  # type: ignore[attr-defined]
    assert config.sources["t"].source.rooms == ("a", "c")  # type: ignore[attr-defined]
    assert config.server.port == 0
    assert config.topics["x"].schema.names == ["timestamp", "source_id"]


def test_a_mistake_in_set_names_the_flag(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        SOURCE,
        sets=["sources.t.rate=0", "sources.t.rooms", "server.prt=1", "log=[", "sources.t.kind.x.y=1"],
    )
    assert found == [
        "--set sources.t.rooms: write key.path=value",
        "--set log=[: log: not valid YAML: while parsing a flow node expected the node content, but found '<stream end>'",
        "--set sources.t.kind.x.y=1: sources.t.kind.x.y: sources.t.kind holds a single value",
        "--set server.prt=1: server.prt: unknown option; did you mean port?",
        "--set sources.t.rate=0: sources.t.rate: must be more than 0 and at most 1000, not 0",
    ]


# -- topics ------------------------------------------------------------------------------------------


def test_topics_that_are_always_there(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert set(config.topics) == {"events", "dead_letters", "dead_letters_resolved"}
    assert config.topics["events"].key == ("source_id",)
    assert config.data_dir == Path("headrace-data").absolute()


def test_a_declared_payload_extends_the_envelope(tmp_path: Path) -> None:
    topics = read(
        tmp_path,
        "topics: {events: {schema: {payload: {temperature: double}}}, orders: {schema: {id: string, at: timestamp, tags: [string]}}}",
    ).topics
    assert topics["events"].schema.field("payload").type.names == ["temperature"]
    assert topics["orders"].schema.names == ["id", "at", "tags"]
    assert topics["orders"].at == "at"


def test_columns_are_followed_through_pipelines_in_order_of_need(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
topics:
  counts: {retention: 1d}
pipelines:
  second: {from: counts, steps: ["tests.unit.sample_components:Rename": {n: total}], to: totals}
  first: {from: events, steps: ["tests.unit.sample_components:Tally": {by: source_id, late: too_late}], to: counts}
sinks:
  all: {kind: "tests.unit.sample_components:Nowhere", from: [totals, too_late], path: lake}
""",
        data_dir=tmp_path,
    )
    assert config.topics["counts"].schema.names == ["timestamp", "source_id", "n"]
    assert config.topics["counts"].key == ("source_id",)
    assert config.topics["counts"].retention == Duration.parse("1d")
    assert config.topics["totals"].schema.names == ["timestamp", "source_id", "total"]
    assert config.topics["too_late"].schema.names == config.topics["events"].schema.names
    assert config.topics["totals"].schema.field("timestamp").type == TIMESTAMP
    assert config.sinks["all"].sink.path == str(tmp_path / "lake")  # type: ignore[attr-defined]


def test_a_step_that_does_not_fit_is_shown_at_the_step(tmp_path: Path) -> None:
    text = """
pipelines:
  one:
    from: events
    steps:
      - tests.unit.sample_components:Keep: [timestamp, source_id]
      - tests.unit.sample_components:Keep: event_type
    to: a
  two: {from: a, to: b}
"""
    assert problems(tmp_path, text) == [
        "headrace.yaml:7:44: pipelines.one.steps[1].tests.unit.sample_components:Keep: no column 'event_type'; there are timestamp, source_id"
    ]


def test_a_circle_of_pipelines_is_a_mistake(tmp_path: Path) -> None:
    text = "pipelines:\n  a: {from: y, to: x}\n  b: {from: x, to: y}\n  c: {from: x, to: z}\n"
    assert problems(tmp_path, text) == [
        "headrace.yaml:2:6: pipelines.a: reads what it writes itself: a <- b <- a; write to another topic",
        "headrace.yaml:3:6: pipelines.b: reads what it writes itself: b <- a <- b; write to another topic",
    ]


@pytest.mark.parametrize(
    ("topic", "by", "expected"),
    [
        ("{partitions: 2}", "source_id", ""),
        ("{partitions: 2}", "[event_type, source_id]", ""),
        ("{partitions: 2}", "event_type", "write to a topic with key [event_type] first"),
        ("{partitions: 2}", "[]", "set topics.events.partitions to 1"),
        ("{partitions: 1}", "event_type", ""),
        ("{partitions: 1}", "[]", ""),
    ],
)
def test_state_by_key_needs_all_rows_of_the_key_in_one_partition(
    tmp_path: Path, topic: str, by: str, expected: str
) -> None:
    text = f"topics: {{events: {topic}}}\npipelines: {{p: {{from: events, steps: ['tests.unit.sample_components:Tally': {{by: {by}}}], to: x}}}}"
    if expected:
        assert expected in problems(tmp_path, text)[0]
    else:
        assert read(tmp_path, text).pipelines["p"].output == "x"


# -- Python ------------------------------------------------------------------------------------------


def test_build_reports_every_option_and_takes_made_values() -> None:
    made = build(Thermometer, {"interval": Duration(5), "rooms": ["a"], "rate": 3}, where="t")
    assert made == Thermometer(interval=Duration(5), rooms=("a",), rate=3.0)
    with pytest.raises(ConfigError) as caught:
        build(Thermometer, {"rate": "x", "divices": 3}, where="sources.t")
    assert [str(p) for p in caught.value.problems] == [
        "sources.t.rate: a number is expected, not 'x'",
        "sources.t.divices: unknown option; did you mean devices?",
    ]


# -- anything at all -----------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["events", "kind", "from", "to", "steps", "key", "schema", "at", "tests.unit.sample_components:Thermometer", "${X}", "${",
     "tests.unit.sample_components:Tally", "tests.unit.sample_components:Nowhere", "10s", "t", "p", "payload", "timestamp", "late", "by"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
SECTIONS = st.sampled_from(
    [
        "topics",
        "sources",
        "pipelines",
        "sinks",
        "server",
        "engine",
        "log",
        "data_dir",
        "data_sources",
        "stream_config",
    ]
)


@given(st.dictionaries(SECTIONS, st.dictionaries(WORDS, VALUES, max_size=3) | VALUES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_content_gives_a_config_or_problems_never_a_crash(value: object) -> None:
    reader = Reader(parse(json.dumps(value), "f"))
    with suppress(ConfigError):
        reader.problems += substitute(reader.document, {"X": "1"})
        if reader.old_style():
            reader = Reader(modernise(reader.document, parse("pipelines: {}", "default"), reader.warnings))
        reader.config({}, None, None, None)


@given(st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_values_or_problems_never_a_crash(text: str | bytes) -> None:
    with suppress(ConfigError):
        parse(text, "f")
