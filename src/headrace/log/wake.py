"""Waking readers: threads of this process by events, other processes by one byte to a port that they listen on."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from headrace.clock import Clock

_RELIST = 4_096  # rings after which the directory is read again anyway, so that dead processes are forgotten


class Waiters:
    """Threads that wait for something to be committed. Waiting goes by the clock, so a FakeClock moves instead."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._events: set[threading.Event] = set()
        self._ended = 0

    def notify(self) -> None:
        """Let every waiting thread look again."""
        if self._events:
            with self._lock:
                for event in self._events:
                    event.set()

    def end(self) -> None:
        """End every wait that is under way."""
        with self._lock:
            self._ended += 1
            for event in self._events:
                event.set()

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Until `ready()`, `timeout` seconds at most, or until `end`; whether it is ready."""
        event = threading.Event()
        until = self._clock.monotonic() + timeout
        with self._lock:
            self._events.add(event)
            ended = self._ended
        try:
            while True:
                event.clear()  # before looking: a commit between looking and waiting sets it again
                if ready():
                    return True
                left = until - self._clock.monotonic()
                if left <= 0 or self._ended != ended:
                    return False
                self._clock.wait(event, left)
        finally:
            with self._lock:
                self._events.discard(event)


class Doorbell:
    """Tells other processes that have the same log open that there is something new, and is told by them.

    Who waits binds a UDP port on the loopback interface and leaves a file `<pid>-<port>` in `directory`. Who commits
    sends one byte to each port. While nobody listens, that costs one `stat`.
    """

    def __init__(self, directory: Path, heard: Callable[[], None]) -> None:
        self._directory = directory
        self._heard = heard
        self._lock = threading.Lock()
        self._ears: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._file: Path | None = None
        self._port = 0
        self._mouth: socket.socket | None = None
        self._ports: tuple[int, ...] = ()
        self._listed_ns = -1
        self._rings = 0
        self._closed = False
        directory.mkdir(parents=True, exist_ok=True)

    def listen(self) -> None:
        """Be told from now on. Only the first call does something."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is not None or self._closed:
                return
            ears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ears.bind(("127.0.0.1", 0))
            self._ears, self._port = ears, ears.getsockname()[1]
            self._file = self._directory / f"{os.getpid()}-{self._port}"
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            self._mark(self._port)
            self._thread = threading.Thread(
                target=self._hear, args=(ears,), name="headrace-log-wake", daemon=True
            )
            self._thread.start()

    def ring(self) -> None:
        """Wake the others."""
        try:
            changed_ns = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            return
        self._rings += 1
        if changed_ns != self._listed_ns or (self._ports and self._rings >= _RELIST):
            self._list(changed_ns)
        if not self._ports:
            return
        with self._lock:
            if self._mouth is None and not self._closed:
                self._mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._mouth.setblocking(False)
            mouth = self._mouth
        if mouth is None:
            return
        for port in self._ports:
            # A full buffer means that there is an unread byte already, and that is enough.
            with contextlib.suppress(OSError):
                mouth.sendto(b"!", ("127.0.0.1", port))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.unlink(missing_ok=True)
                self._mark(65_536 + self._port)
            if self._ears is not None:
                # An empty datagram from ourselves ends the thread: closing a socket does not end its recv.
                self._ears.sendto(b"", ("127.0.0.1", self._port))
        if self._thread is not None:
            self._thread.join()
        if self._ears is not None:
            self._ears.close()
        if self._mouth is not None:
            self._mouth.close()

    def _hear(self, ears: socket.socket) -> None:
        while True:
            ears.recv(16)
            if self._closed:
                return
            self._heard()

    def _mark(self, unique_ns: int) -> None:
        """Give the directory a modification time that no other registration gives it: the kernel's own may stand
        still for milliseconds, and who had listed the directory just before would never notice."""
        with contextlib.suppress(FileNotFoundError):
            stat = self._directory.stat()
            os.utime(self._directory, ns=(stat.st_atime_ns, stat.st_mtime_ns + unique_ns))

    def _list(self, changed_ns: int) -> None:
        ports = []
        for file in self._directory.iterdir():
            pid_text, _, port_text = file.name.partition("-")
            if not (pid_text.isdigit() and port_text.isdigit()):
                continue
            port = int(port_text)
            if port == self._port:
                continue
            if _alive(int(pid_text)):
                ports.append(port)
            else:
                file.unlink(missing_ok=True)
        self._ports, self._listed_ns, self._rings = tuple(ports), changed_ns, 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
