"""HTTP load over raw sockets, from a process of its own: cheap enough that what it drives is the bottleneck.

    python bench/load.py PORT CONNECTIONS SECONDS RATE < bodies

Bodies come as length-prefixed blocks (4 bytes, little-endian). RATE in requests/s over all connections; 0 = as fast as
possible. Prints one JSON line: requests, seconds, errors, latency percentiles in ms.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time


def read_bodies() -> list[bytes]:
    data, bodies, at = sys.stdin.buffer.read(), [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        bodies.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return bodies


def post(connection: socket.socket, request: bytes) -> bytes:
    """Send one request and read the answer; the status line."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("closed")
        answer += more
    head, _, rest = answer.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(rest) < length:
        rest += connection.recv(65536)
    return head.split(b"\r\n", 1)[0]


def main() -> None:
    port, connections, seconds, rate = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        float(sys.argv[4]),
    )
    head = "POST /ingest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(body)).encode() + body for body in read_bodies()]
    lock = threading.Lock()
    state = {"next": 0, "errors": 0}
    latencies: list[float] = []
    began = time.perf_counter()

    def drive() -> None:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            with lock:
                number = state["next"]
                if number >= len(requests) or time.perf_counter() - began > seconds:
                    return
                state["next"] += 1
            if rate:
                due = began + number / rate
                pause = due - time.perf_counter()
                if pause > 0:
                    time.sleep(pause)
            sent = time.perf_counter()
            status = post(connection, requests[number])
            latencies.append(time.perf_counter() - sent)
            if b" 200 " not in status:
                state["errors"] += 1

    threads = [threading.Thread(target=drive) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    latencies.sort()
    at = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))] * 1000  # noqa: E731
    print(
        json.dumps(
            {
                "requests": state["next"],
                "seconds": took,
                "errors": state["errors"],
                "p50_ms": at(0.5),
                "p99_ms": at(0.99),
            }
        )
    )


if __name__ == "__main__":
    main()
