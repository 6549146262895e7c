"""One process per data directory, told apart by a lock that the operating system drops when its owner dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.errors import DataDirInUseError


class DataDirLock:
    """Holds a data directory for this process, from `acquire` to `release` or as a `with` block."""

    def __init__(self, data_dir: Path) -> None:
        self._path = Path(data_dir) / "headrace.lock"
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock. Raises DataDirInUseError naming the process that has it; one left by a dead process is no hindrance."""
        if self._fd >= 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise DataDirInUseError(
                f"data directory {self._path.parent} is in use by another headrace, process {owner}; "
                f"stop it (kill {owner}), or start with another --data-dir"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        # The file stays when the lock goes: removing it would let two processes lock two files of the same name.
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the directory free. Does nothing when it isn't held."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()
