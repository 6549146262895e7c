"""The older config.json is accepted as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace import old_config
from headrace.errors import ConfigError, Problem
from headrace.yaml_positions import Document, parse

DEFAULT = "sources: {machine: {kind: x}}\npipelines: {}\nserver: {port: 8080}\n"
COUNTER = "tests.unit.sample_components:Counter"


@pytest.fixture(autouse=True)
def counter_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind by its old name that exists without the package's own sources."""
    monkeypatch.setitem(old_config._KINDS, "mock", COUNTER)


def modernise(value: Any) -> tuple[Document, list[Problem]]:
    warnings: list[Problem] = []
    text = json.dumps(value, indent=2)
    return old_config.modernise(
        parse(text, "config.json"), parse(DEFAULT, "default.yaml"), warnings
    ), warnings


@pytest.mark.parametrize(
    "sources",
    [
        {"counter": {"type": "mock", "total": 7}},
        [{"name": "counter", "type": "mock", "total": 7}],
    ],
)
def test_sources_as_list_and_as_mapping(sources: Any) -> None:
    document, warnings = modernise({"data_sources": sources})
    assert document.value["sources"] == {"counter": {"kind": COUNTER, "total": 7}}
    assert document.value["pipelines"] == {}
    assert warnings == []


def test_unknown_kinds_are_left_out_with_a_warning_at_their_place() -> None:
    document, warnings = modernise(
        {
            "data_sources": {
                "prices": {"type": "carrier_pigeon", "url": "https://example.org"},
                "c": {"type": "mock"},
            }
        }
    )
    assert list(document.value["sources"]) == ["c"]
    assert [str(w) for w in warnings] == [
        "config.json:3:15: data_sources.prices: sources of kind 'carrier_pigeon' are not available in this version; prices is left out"
    ]


def test_options_that_a_kind_does_not_have_are_named() -> None:
    document, warnings = modernise({"data_sources": {"c": {"type": "mock", "size": 3, "format": "json"}}})
    assert document.value["sources"]["c"] == {"kind": COUNTER, "size": 3}
    assert [w.where for w in warnings] == ["data_sources.c.format"]


def test_stream_settings_go_where_they_belong_now() -> None:
    document, warnings = modernise(
        {
            "stream_config": {
                "buffer_size": 1000,
                "batch_size": 100,
                "processing_interval": 1,
                "max_connections": 50,
            }
        }
    )
    assert document.value["engine"]["max_epoch_rows"] == 100
    assert document.value["server"] == {"port": 8080, "max_connections": 50}
    assert [w.where for w in warnings] == ["stream_config.buffer_size", "stream_config.processing_interval"]
    assert document.problem(("server", "max_connections"), "x").line == 6


@pytest.mark.parametrize(
    "value",
    [{"data_sources": 5}, {"stream_config": []}, {"data_sources": [5]}, {"data_sources": {"a": {"type": 5}}}],
)
def test_what_makes_no_sense_is_a_mistake_with_its_place(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.json:\d+:\d+: "):
        modernise(value)


def test_two_sources_of_one_type_get_different_names(tmp_path: Path) -> None:
    document, _ = modernise(
        {"data_sources": [{"type": "mock"}, {"type": "mock"}, {"name": "a b", "type": "mock"}]}
    )
    assert len(document.value["sources"]) == 3
    assert "a_b" in document.value["sources"]
