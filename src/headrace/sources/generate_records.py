"""Business events behind `generate`: customers, transactions and web analytics, as a function of the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Draw = Callable[[np.random.Generator, npt.NDArray[np.int64]], pa.Array]

_FIRST = (
    "Ana",
    "Bruno",
    "Carla",
    "Diego",
    "Elena",
    "Farid",
    "Grace",
    "Hiro",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
    "Mei",
    "Nuno",
)
_LAST = (
    "Almeida",
    "Berg",
    "Costa",
    "Diaz",
    "Evans",
    "Fischer",
    "Garcia",
    "Haas",
    "Ito",
    "Jensen",
    "Khan",
    "Lima",
    "Moreau",
)
_COUNTRIES = ("BR", "PT", "US", "DE", "FR", "JP", "IN", "GB")
_PAGES = ("/", "/search", "/product", "/cart", "/checkout", "/account", "/help")


def _pick(*values: str, weights: Sequence[float] = ()) -> Draw:
    pool = pa.array(values, pa.string())
    edges = np.cumsum(weights or [1.0] * len(values))
    edges = edges / edges[-1]

    def draw(rng: np.random.Generator, numbers: npt.NDArray[np.int64]) -> pa.Array:
        return pool.take(pa.array(np.searchsorted(edges, rng.random(len(numbers)), side="right")))

    return draw


def _number(low: float, high: float, *, decimals: int = 0, heavy: bool = False) -> Draw:
    """Even between `low` and `high`, or log-normal with those about its fifth and ninety-fifth percentile."""

    def draw(rng: np.random.Generator, numbers: npt.NDArray[np.int64]) -> pa.Array:
        if heavy:
            middle, width = (np.log(low) + np.log(high)) / 2, (np.log(high) - np.log(low)) / 3.3
            values = np.exp(middle + width * rng.standard_normal(len(numbers)))
        else:
            values = rng.uniform(low, high, len(numbers))
        return pa.array(np.round(values, decimals))

    return draw


def _code(*values: float, weights: Sequence[float]) -> Draw:
    pool = np.array(values, np.float64)
    edges = np.cumsum(weights) / sum(weights)
    return lambda rng, numbers: pa.array(pool[np.searchsorted(edges, rng.random(len(numbers)), side="right")])


def _reference(prefix: str, most: int) -> Draw:
    """Names of other things, such as which customer: `prefix` and a number below `most`."""

    def draw(rng: np.random.Generator, numbers: npt.NDArray[np.int64]) -> pa.Array:
        return _named(prefix, rng.integers(1, most + 1, len(numbers)))

    return draw


def _own(prefix: str) -> Draw:
    """Names of the thing itself, unique for each event."""

    def draw(rng: np.random.Generator, numbers: npt.NDArray[np.int64]) -> pa.Array:
        return _named(prefix, numbers + 1)

    return draw


def _named(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(
        pa.scalar(prefix), pc.cast(pa.array(numbers), pa.string()), pa.scalar("-")
    )


def _flag(share: float) -> Draw:
    return lambda rng, numbers: pa.array(rng.random(len(numbers)) < share)


@dataclass(frozen=True, slots=True)
class Records:
    """One kind of business event: who sends it, its types, and the fields of its payload."""

    source: str
    types: Draw
    fields: dict[str, Draw]

    def types_of_fields(self) -> list[pa.Field]:
        """The payload's fields."""
        rng = np.random.default_rng(0)
        none = np.zeros(0, np.int64)
        return [pa.field(name, draw(rng, none).type) for name, draw in self.fields.items()]


PROFILES = {
    "customers": Records(
        "crm",
        _pick("customer_created", "customer_updated", "customer_deleted", weights=(6, 3, 0.3)),
        {
            "customer_id": _own("c"),
            "first_name": _pick(*_FIRST),
            "last_name": _pick(*_LAST),
            "country": _pick(*_COUNTRIES, weights=(5, 3, 4, 2, 2, 1, 3, 2)),
            "segment": _pick("consumer", "business", "enterprise", weights=(7, 2, 1)),
            "age": _number(18, 85),
            "lifetime_value": _number(20, 5_000, decimals=2, heavy=True),
            "newsletter": _flag(0.4),
        },
    ),
    "transactions": Records(
        "store",
        _pick("purchase", "refund", "transfer", weights=(20, 1, 3)),
        {
            "transaction_id": _own("t"),
            "customer_id": _reference("c", 50_000),
            "amount": _number(5, 400, decimals=2, heavy=True),
            "currency": _pick("EUR", "USD", "BRL", weights=(4, 4, 2)),
            "method": _pick("card", "transfer", "wallet", "cash", weights=(6, 1, 2, 1)),
            "status": _pick("approved", "declined", "error", weights=(94, 5, 1)),
            "items": _number(1, 12),
            "latency_ms": _number(20, 300, decimals=1, heavy=True),
        },
    ),
    "analytics": Records(
        "web",
        _pick("page_view", "click", "search", "signup", "purchase", "error", weights=(60, 25, 8, 1, 3, 1)),
        {
            "session_id": _reference("s", 20_000),
            "user_id": _reference("u", 8_000),
            "page": _pick(*_PAGES, weights=(5, 4, 8, 3, 1, 2, 1)),
            "device": _pick("phone", "desktop", "tablet", weights=(6, 4, 1)),
            "country": _pick(*_COUNTRIES),
            "status": _code(200, 404, 500, weights=(97, 2, 1)),
            "latency_ms": _number(15, 600, decimals=1, heavy=True),
        },
    ),
}
"""Business events by profile name."""
