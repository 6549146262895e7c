"""JSON text of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def encode_json(content: Any) -> bytes:
    """NaN and infinity become null, lone surrogates U+FFFD; what JSON has no word for is written as its text."""
    try:
        return msgspec.json.encode(content, enc_hook=str)
    except UnicodeEncodeError:
        return msgspec.json.encode(_storable(content), enc_hook=str)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    return value
