"""`make bench`: every bench in turn, each in a process of its own so that none finds the other's memory.

python -m bench [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
import time

BENCHES = {
    "http_windows": ["--events", "3000000"],
    "latency": [],
    "memory": ["--minutes", "1"],
    "log": [],
    "parse": [],
    "window": [],
    "query": [],
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", f"bench.{name}", *BENCHES[name]], check=False).returncode
        print(f"\n{name}: {time.monotonic() - began:.0f} s")
        if code:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
