"""Plants each bug of `planted_bugs` in a copy of the tree and runs the tests that must notice it.

python -m tests.house.planted            # all of them, one after the other; some minutes
python -m tests.house.planted watermark  # those whose words or file contain a text
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.house.planted_bugs import BUGS, Bug

ROOT = Path(__file__).parents[2]
SECONDS = 120


def main(words: list[str]) -> int:
    """Prints a line for each; gives 1 when a mutation was let pass."""
    chosen = [bug for bug in BUGS if all(word in f"{bug.what} {bug.file}" for word in words)]
    survived, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy2(ROOT / name, copy / name)
        # As they are, all of these tests pass: a failure that was there before would notice everything.
        code, said = run(tuple(dict.fromkeys(test for bug in chosen for test in bug.tests)), copy, 600)
        if code != 0:
            print(f"the tests fail without any planted bug:\n{said[-3000:]}")
            return 1
        for bug in chosen:
            started = time.monotonic()
            noticed, how = plant(bug, copy)
            if not noticed:
                survived.append(bug)
            print(
                f"{'noticed ' if noticed else 'SURVIVED'}  {time.monotonic() - started:5.1f} s  {bug.file:24} {bug.what}{how}",
                flush=True,
            )
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} noticed in {time.monotonic() - began:.0f} s; "
        + (f"missing tests: {len(survived)}" if survived else "every one turns the suite red")
    )
    return 1 if survived or not chosen else 0


def plant(bug: Bug, copy: Path) -> tuple[bool, str]:
    """Whether the tests notice, and what to say beside it."""
    path = copy / "src" / "headrace" / bug.file
    text = path.read_text("utf-8")
    if text.count(bug.old) != 1:
        return False, f": the text stands there {text.count(bug.old)} times"
    path.write_text(text.replace(bug.old, bug.new), "utf-8")
    try:
        code, said = run(bug.tests, copy, SECONDS)
    finally:
        path.write_text(text, "utf-8")
    if code == 1:
        return True, ""
    if code is None:
        return True, " (by running out of time)"
    return False, "" if code == 0 else f": pytest ended with {code}\n{said[-1500:]}"


def run(tests: tuple[str, ...], copy: Path, seconds: float) -> tuple[int | None, str]:
    """pytest's exit code, None when it took too long, and its output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--timeout=60",
        *(test.removesuffix("::") for test in tests),
    ]
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=copy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
            return process.returncode, said.decode(errors="replace")
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: what the tests started goes too
            return None, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
