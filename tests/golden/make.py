"""Input and expected rows of the golden folders that are too long to write by hand: plain loops over rows, nothing of
headrace. `python tests/golden/make.py` writes the files; a test holds them against these loops.
"""

from __future__ import annotations

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

Row = dict[str, Any]
START = datetime(2023, 11, 1, 10, tzinfo=UTC)


def iso(seconds: float) -> str:
    """A time so many seconds after the start, as headrace writes times."""
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def groups(rows: list[tuple[float, Any, Any]], length: int) -> dict[tuple[int, Any], list[Any]]:
    """Values by (start of the window, key)."""
    found = defaultdict(list)
    for at, key, value in rows:
        found[int(at // length) * length, key].append(value)
    return found


def disordered(seed: int, count: int, step: float, most: float) -> list[float]:
    """Times that advance by up to `step` and come at most `most` seconds after a later one."""
    random_ = random.Random(seed)
    now, times = 0.0, []
    for _ in range(count):
        now += random_.choice([0.0, step / 4, step / 2, step])
        times.append(max(0.0, now - random_.choice([0, 0, 0, most / 2, most])))
    return times


def heat_alarm() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(1)
    events = [(at, random_.choice("abc"), random_.randint(40, 80) / 2) for at in disordered(1, 60, 2, 3)]
    events += [(90.0, "a", 30.0), (90.0, "b", 30.5), (99.999999, "b", 31.0), (100.0, "b", 35.0)]  # the edges
    hot = [event for event in events if event[2] > 30]
    expected = [
        {
            "source_id": key, "window_start": iso(start), "window_end": iso(start + 10),
            "count": len(values), "avg": sum(values) / len(values), "max": max(values),
        }
        for (start, key), values in groups(hot, 10).items()
    ]  # fmt: skip
    given = [{"source_id": k, "timestamp": iso(at), "payload": {"temperature": v}} for at, k, v in events]
    return given, expected


def chained_windows() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(2)
    given, measured = [], []
    for at in disordered(2, 80, 4, 4):
        source, payload = random_.choice("ab"), {}
        if random_.random() < 0.8:
            payload["cpu"] = random_.randint(0, 400) / 4
            measured.append((at, (source, "cpu"), payload["cpu"]))
        if random_.random() < 0.5:
            payload["disk"] = {"free": random_.randint(1, 10**12)}
            measured.append((at, (source, "disk.free"), float(payload["disk"]["free"])))
        if random_.random() < 0.3:
            payload["ok"] = random_.random() < 0.5
            measured.append((at, (source, "ok"), float(payload["ok"])))
        given.append({"source_id": source, "timestamp": iso(at), "payload": payload})
    tens = groups(measured, 10)
    expected = [
        {
            "sensor_id": source, "metric": metric, "window_start": iso(start), "window_end": iso(start + 60),
            "windows": sum(1 for ten, key in tens if key == (source, metric) and start <= ten < start + 60),
            "n": len(values), "total": sum(values), "peak": max(values),
        }
        for (start, (source, metric)), values in groups(measured, 60).items()
    ]  # fmt: skip
    return given, expected


def hopping() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(3)
    rows = [(at, random_.choice("ab"), float(random_.randint(-9, 9))) for at in disordered(3, 50, 6, 5)]
    rows = [(at + n / 1000, key, value) for n, (at, key, value) in enumerate(rows)]  # no two at the same time
    expected = []
    for key in "ab":
        for start in range(-20, 400, 10):
            inside = sorted((at, v) for at, k, v in rows if k == key and start <= at < start + 30)
            if inside:
                values = [value for _, value in inside]
                expected.append(
                    {
                        "sensor_id": key, "window_start": iso(start), "window_end": iso(start + 30), "count": len(values),
                        "sum": sum(values), "min": min(values), "first": values[0], "last": values[-1],
                    }
                )  # fmt: skip
    return [{"sensor_id": k, "timestamp": iso(at), "value": v} for at, k, v in rows], expected


def session() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(4)
    rows = [
        (at, random_.choice("xyz"), random_.choice(["home", "shop", "cart"]))
        for at in disordered(4, 60, 8, 4)
    ]
    rows = [(at + n / 1000, key, page) for n, (at, key, page) in enumerate(rows)]
    end = max(at for at, _, _ in rows)
    # Exactly the gap apart: the end of a session is not in it. Just less: it is. The middle one joins two.
    rows += [
        (end + 100, "x", "home"),
        (end + 105, "x", "shop"),
        (end + 200, "y", "home"),
        (end + 204.999, "y", "cart"),
    ]
    rows += [(end + 300, "z", "home"), (end + 306, "z", "cart"), (end + 303, "z", "shop")]
    expected = []
    for key in "xyz":
        visit: list[tuple[float, str]] = []
        for at, page in [*sorted((at, page) for at, k, page in rows if k == key), (10**6, "")]:
            if visit and at - visit[-1][0] >= 5:
                pages = [name for _, name in visit]
                expected.append(
                    {
                        "visitor": key, "window_start": iso(visit[0][0]), "window_end": iso(visit[-1][0] + 5),
                        "count": len(visit), "distinct": len(set(pages)), "first": pages[0], "last": pages[-1],
                    }
                )  # fmt: skip
                visit = []
            visit.append((at, page))
    return [{"visitor": k, "timestamp": iso(at), "page": page} for at, k, page in rows], expected


def percentiles() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(5)
    given, expected = [], []
    for minute in range(3):
        rows = []
        for key in ("a", "b"):
            values = [float(random_.randint(1, 40)) for _ in range(21)]
            rows += [(minute * 60 + 57 * n / 21, key, value) for n, value in enumerate(values)]
            ranked = sorted(values)  # 21 values: the quantile q is at rank 20 q
            expected.append(
                {
                    "sensor_id": key, "window_start": iso(minute * 60), "window_end": iso(minute * 60 + 60), "count": 21,
                    "stddev": statistics.stdev(values), "distinct": len(set(values)), "middle": ranked[10],
                    "high": ranked[18], "higher": ranked[19], "lowest": ranked[0],
                }
            )  # fmt: skip
        given += [{"sensor_id": k, "timestamp": iso(round(at, 3)), "value": v} for at, k, v in sorted(rows)]
    return given, expected


def moving_average() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(6)
    given, expected = [], []
    seen: dict[str, list[float]] = {"a": [], "b": []}
    slow: dict[str, float] = {}
    for n in range(40):
        key, value = random_.choice("ab"), random_.randint(0, 100) / 4
        row: Row = {"sensor_id": key, "timestamp": iso(n), "value": value}
        seen[key].append(value)
        slow[key] = value if key not in slow else 0.25 * value + 0.75 * slow[key]
        last = seen[key][-3:]
        given.append(row)
        expected.append({**row, "simple": sum(last) / len(last), "slow": slow[key]})
    return given, expected


def join_asof() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(7)
    limits = [
        (n * 20.0 + random_.randint(0, 9), random_.choice("abc"), float(random_.randint(10, 30)))
        for n in range(15)
    ]
    limits = [(at, key, limit) for at, key, limit in limits if key != "c"]  # c never has one
    readings = [
        (at + n / 1000, random_.choice("abc"), float(random_.randint(0, 40)))
        for n, at in enumerate(disordered(7, 40, 12, 3))
    ]
    readings += [
        (limits[0][0], limits[0][1], 25.0),
        (limits[0][0] + 40, limits[0][1], 25.0),
    ]  # the edges count
    expected = []
    for at, key, value in readings:
        row: Row = {"sensor_id": key, "timestamp": iso(at), "value": value}
        held = [(when, limit) for when, k, limit in limits if k == key and at - 40 <= when <= at]
        if held:
            when, limit = max(held)
            row |= {"limits_timestamp": iso(when), "limit": limit, "over": value > limit}
        expected.append(row)
    given = [{"topic": "limits", "sensor_id": k, "timestamp": iso(at), "limit": v} for at, k, v in limits]
    given += [{"sensor_id": k, "timestamp": iso(at), "value": v} for at, k, v in readings]
    return given, expected


def join_interval() -> tuple[list[Row], list[Row]]:
    random_ = random.Random(8)
    orders = [(float(random_.randint(0, 200)), random_.choice("pqr"), n) for n in range(30)]
    payments = [(float(random_.randint(0, 200)), random_.choice("pq"), n * 1.5) for n in range(30)]
    expected = [
        {
            "customer": a,
            "timestamp": iso(at),
            "order": number,
            "payments_timestamp": iso(when),
            "amount": amount,
        }
        for at, a, number in orders
        for when, b, amount in payments
        if a == b and -5 <= when - at <= 20
    ]
    given = [{"customer": k, "timestamp": iso(at), "order": v} for at, k, v in orders]
    given += [
        {"topic": "payments", "customer": k, "timestamp": iso(at), "amount": v} for at, k, v in payments
    ]
    return given, expected


MADE: dict[str, Callable[[], tuple[list[Row], list[Row]]]] = {
    made.__name__: made
    for made in (
        heat_alarm,
        chained_windows,
        hopping,
        session,
        percentiles,
        moving_average,
        join_asof,
        join_interval,
    )
}


def texts(name: str) -> dict[str, str]:
    """File name -> what it holds."""
    given, expected = MADE[name]()
    return {
        f"{file}.ndjson": "".join(json.dumps(row) + "\n" for row in rows)
        for file, rows in (("input", given), ("expected", expected))
    }


if __name__ == "__main__":
    for folder in MADE:
        for name, text in texts(folder).items():
            (Path(__file__).parent / folder / name).write_text(text)
