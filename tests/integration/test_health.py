"""What a running headrace says of its own health: what is wrong, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.config import load_config
from headrace.run import Runtime

CONFIG = """
sources:
  beat: {{kind: generate, rate: 10, devices: 1}}
pipelines:
  rooms:
    from: events
    steps:
      - enrich: {{table: {place}/rooms.csv, on: {{source_id: id}}, reload: 50ms}}
    to: placed
  broken:
    from: events
    steps:
      - enrich: {{table: {place}/none.csv, on: {{source_id: id}}, columns: [floor], types: {{floor: int}}}}
    to: never
"""


def until(found: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_health_names_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    table = tmp_path / "rooms.csv"
    table.write_text("id,room\na,lab\n")
    file = tmp_path / "headrace.yaml"
    file.write_text(CONFIG.format(place=tmp_path), "utf-8")
    runtime = Runtime(load_config(file, data_dir=tmp_path / "data", env={}))

    def part(name: str) -> dict[str, Any]:
        return next(part for part in runtime.health()["components"] if part["name"] == name)

    try:
        runtime.start_all()
        until(lambda: part("broken")["status"] == "failing")
        assert "there is no file" in part("broken")["reason"]
        assert "its rows wait in the log; correct the pipeline" in part("broken")["reason"]
        assert runtime.health()["status"] == "failing"
        until(lambda: part("rooms")["reason"] == "running")
        assert part("rooms")["status"] == "ok"

        table.unlink()  # the next reload fails; rows go on with the table of before
        until(lambda: part("rooms")["status"] == "degraded")
        assert "step 1 (enrich): the table of before stays in use" in part("rooms")["reason"]
        assert "put it there" in runtime.status()["pipelines"]["rooms"]["problem"]
        table.write_text("id,room\nb,hall\n")
        until(lambda: part("rooms")["status"] == "ok")

        runtime.stop("beat")
        assert part("beat") | {"since": 0} == {
            "name": "beat", "kind": "source", "status": "ok", "since": 0,
            "reason": "stopped; POST /api/stream/start starts it",
        }  # fmt: skip
    finally:
        runtime.close()
