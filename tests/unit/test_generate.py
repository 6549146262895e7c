"""Simulated data: the same for the same seed, in the shares asked for, with its truth."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.component import Arrival, PlanError
from headrace.formats import decode
from headrace.model import EVENTS, Topic
from headrace.sources.generate import Generate

START = "2024-01-01T00:00:00Z"
START_US = 1_704_067_200_000_000
PROFILES = ("fleet", "customers", "transactions", "analytics")


def made(**options: Any) -> Generate:
    source = Generate(**({"rate": 0, "start": START, "count": 20_000, "devices": 40} | options))
    source.check()
    return source


def rows_of(arrivals: list[Arrival]) -> pa.Table:
    return pa.Table.from_batches([arrival.rows for arrival in arrivals])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_gives_rows_of_its_schema(profile: Any) -> None:
    source = made(profile=profile)
    arrivals = list(source.read("0", None))
    table = rows_of(arrivals)
    assert table.num_rows == 20_000
    assert table.schema.equals(source.schema())
    table.validate(full=True)
    assert len(pc.unique(table["source_id"])) == 40
    assert pc.min(table["timestamp"]).as_py().timestamp() == START_US / 1e6


@settings(max_examples=10, deadline=None)
@given(st.integers(50, 3_000), st.integers(1, 50), st.integers(0, 2**63 - 1), st.data())
def test_any_batch_size_and_any_restart_give_the_same_events(
    batch: int, devices: int, seed: int, data: st.DataObject
) -> None:
    options = {
        "devices": devices,
        "seed": seed,
        "count": 1_500,
        "late": 0.1,
        "duplicates": 0.05,
        "malformed": 0.02,
        "anomalies": 0.02,
    }
    whole = list(made(**options).read("0", None))
    cut = list(made(**options, batch=batch).read("0", None))
    assert rows_of(cut).equals(rows_of(whole))
    at = data.draw(st.integers(0, len(cut) - 1))
    following = list(made(**options, batch=777).read("0", json.loads(json.dumps(cut[at].cursor))))
    again = cut[: at + 1] + following
    assert rows_of(again).equals(rows_of(whole))
    for take in (
        lambda a: a.rejects,
        lambda a: [row for rows in a.beside.values() for row in rows.to_pylist()],
    ):
        assert [x for a in again for x in take(a)] == [x for a in whole for x in take(a)]


def test_events_one_at_a_time_are_the_same_events() -> None:
    options = {"count": 120, "devices": 7, "duplicates": 0.1, "malformed": 0.1}
    assert rows_of(list(made(**options, batch=1).read("0", None))).equals(
        rows_of(list(made(**options).read("0", None)))
    )


def test_seeds_differ() -> None:
    assert not rows_of(list(made(seed=1).read("0", None))).equals(rows_of(list(made(seed=2).read("0", None))))


def test_shares_are_kept() -> None:
    source = made(count=50_000, late=0.1, duplicates=0.05, malformed=0.02)
    arrivals = list(source.read("0", None))
    rejects = [reject for arrival in arrivals for reject in arrival.rejects]
    table = rows_of(arrivals)
    assert len(rejects) == pytest.approx(1_000, rel=0.2)
    assert table.num_rows - (50_000 - len(rejects)) == pytest.approx(2_500, rel=0.2)
    late = pc.subtract(pc.cast(table["received_at"], pa.int64()), pc.cast(table["timestamp"], pa.int64()))
    lateness = np.asarray(late)
    assert np.count_nonzero(lateness > 0) == pytest.approx(5_200, rel=0.2)
    assert lateness.max() <= 30_000_000
    assert lateness.min() >= 0


def test_malformed_events_are_of_many_kinds_and_keep_their_bytes() -> None:
    rejects = [reject for arrival in made(malformed=0.05).read("0", None) for reject in arrival.rejects]
    codes = Counter(reject.code for reject in rejects)
    assert codes.keys() >= {
        "malformed_json", "missing_field", "bad_timestamp", "out_of_range", "bad_encoding", "wrong_type", "future_timestamp", "too_deep",
    }  # fmt: skip
    assert all(reject.raw and reject.reason for reject in rejects)


def test_the_truth_tells_where_readings_are_off() -> None:
    source = made(count=400_000, anomalies=0.02, metrics=("temperature", "voltage"))
    arrivals = list(source.read("0", None))
    table = rows_of(arrivals).to_batches()
    truth = pa.Table.from_batches(
        [rows for arrival in arrivals for rows in arrival.beside.values()]
    ).to_pylist()
    assert Counter(found["type"] for found in truth).keys() == {
        "spike",
        "level_shift",
        "drift",
        "stuck",
        "dropout",
    }
    rows = pa.concat_batches(table)
    times = np.asarray(pc.cast(rows["timestamp"], pa.int64()))
    ids = np.asarray(rows["source_id"].dictionary_encode().indices)
    names = rows["source_id"].dictionary_encode().dictionary.to_pylist()
    last_us = int(times.max())
    off = 0
    for found in truth:
        end_us = round(found["end"].timestamp() * 1e6)
        if end_us > last_us:
            continue
        inside = (
            (ids == names.index(found["source_id"]))
            & (times >= round(found["start"].timestamp() * 1e6))
            & (times < end_us)
        )
        near = (
            (ids == names.index(found["source_id"]))
            & (np.abs(times - times[inside].min()) < 30_000_000)
            & ~inside
        )
        values = rows["payload"].field(found["metric"]).to_numpy(zero_copy_only=False)
        off += int(inside.sum())
        if found["type"] == "dropout":
            assert np.isnan(values[inside]).all()
        elif found["type"] == "stuck":
            assert len(set(values[inside])) == 1
        else:
            height = np.abs(values[inside] - np.nanmedian(values[near])).max()
            assert height > abs(found["value"]) / 3
    assert off / rows.num_rows == pytest.approx(0.02, rel=0.4)


@pytest.mark.parametrize("profile", PROFILES)
def test_lines_are_the_same_events_as_text(profile: Any) -> None:
    source = made(profile=profile, count=6_000, late=0.05, duplicates=0.02, anomalies=0.02)
    body = b"".join(source.lines())
    now_us = START_US + 10**10
    decoded = decode(
        body, media_type="application/x-ndjson", topic=Topic("events", source.schema()), now_us=now_us
    )
    assert decoded.rejects == ()
    expected = rows_of(list(source.read("0", None)))
    assert decoded.rows is not None
    found = pa.Table.from_batches([decoded.rows])
    assert found.drop_columns(["received_at", "timestamp"]).equals(
        expected.drop_columns(["received_at", "timestamp"])
    )
    milliseconds = pc.cast(
        pc.floor_temporal(expected["timestamp"], unit="millisecond"), EVENTS.field("timestamp").type
    )
    assert found["timestamp"].equals(milliseconds)


def test_lines_hold_the_malformed_events_too() -> None:
    source = made(malformed=0.05, duplicates=0.02, count=5_000)
    body = b"".join(source.lines())
    decoded = decode(
        body,
        media_type="application/x-ndjson",
        topic=Topic("events", source.schema()),
        now_us=START_US + 10**9,
    )
    rejects = [reject for arrival in source.read("0", None) for reject in arrival.rejects]
    assert [reject.raw for reject in decoded.rejects] == [reject.raw for reject in rejects]


def test_real_time_goes_on_with_the_present_after_a_pause() -> None:
    source = Generate(rate=1_000, devices=5, count=60)
    arrivals = [arrival for arrival in source.read("0", None) if arrival.rows is not None]
    assert sum(arrival.rows.num_rows for arrival in arrivals) == 60
    cursor = dict(arrivals[0].cursor)
    cursor["start_us"] -= 3_600_000_000
    resumed = next(arrival for arrival in source.read("0", cursor) if arrival.rows is not None)
    hour_later = pc.min(resumed.rows["timestamp"]).as_py() - pc.max(arrivals[0].rows["timestamp"]).as_py()
    assert hour_later.total_seconds() < 60
    assert resumed.cursor["start_us"] > cursor["start_us"]


@pytest.mark.parametrize("options", [{"start": "soon"}, {"metrics": ("a", "a")}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        Generate(**options).check()
