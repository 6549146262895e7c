"""The note beside the data: enough to find the same topics again, and no secrets."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.commands.place import find_config, note_run
from headrace.config import load_config

CONFIG = """
topics: {readings: {schema: {id: string, timestamp: timestamp}}}
sinks: {lake: {kind: delta, from: readings, path: lake}}
"""
SETS = [
    "topics.readings.key=id",
    "topics.readings.partitions=3",
    "server.port=0",
    "server.query_memory=64MiB",
    "engine.checkpoint_interval=1s",
    "sinks.lake.storage_options.AWS_SECRET_ACCESS_KEY=hunter2",
    "sinks.lake.storage_options={AWS_ACCESS_KEY_ID: hunter2}",
    "sinks.people={kind: sensors, from: events, url: 'postgresql://bob:hunter2@db/x'}",
]


def test_the_note_holds_no_secret_and_what_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(CONFIG, "utf-8")
    config = load_config(file, sets=SETS, data_dir=tmp_path / "data", env={})
    config.data_dir.mkdir()
    note = config.data_dir / "run.json"
    note.write_text("{}")
    note.chmod(0o644)  # as an earlier version left it
    note_run(config, file, SETS, demo=True)
    text = note.read_text()
    assert "hunter2" not in text
    assert note.stat().st_mode & 0o777 == 0o600
    assert [s.partition("=")[0] for s in json.loads(text)["sets"]] == [
        "topics.readings.key", "topics.readings.partitions", "server.port", "sinks.people",
    ]  # fmt: skip
    found = find_config(None, str(config.data_dir))
    assert found.topics == config.topics
    assert set(found.sinks) == {"lake", "people"}


def test_a_secret_that_an_option_needs_leaves_another_text(tmp_path: Path) -> None:
    config = load_config(None, data_dir=tmp_path, env={})
    note_run(
        config, None, ["sources.feed.api_key=hunter2", "sources.feed.headers={Token: [hunter2, 5]}"], False
    )
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "config": None,
        "sets": ['sources.feed.api_key="not-kept"', 'sources.feed.headers={"Token": ["not-kept", 0]}'],
        "demo": False,
    }
