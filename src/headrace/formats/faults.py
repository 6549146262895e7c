"""What can be wrong with a body as a whole, and with one row of it."""

from __future__ import annotations

from headrace.errors import HeadraceError


class FormatFaultError(HeadraceError):
    """A body that can't be used at all. `status` is the HTTP status that says so: 400, 413 or 415."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class TooLargeError(FormatFaultError):
    """A body over its limit, before or after decompression."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=413)


class Refused(Exception):  # noqa: N818  a verdict on one row, caught where the row was read; never leaves this package
    """One row can't be used: `code` from the fixed list of causes, the reason in words."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


CODES = {
    "malformed_json": "the row is not JSON",
    "bad_encoding": "the row has bytes that are not UTF-8, or half of a surrogate pair",
    "not_an_object": "the row is JSON, but not an object",
    "missing_field": "a field that must be there is missing, null or empty",
    "wrong_type": "a value is not of the type that its field has",
    "out_of_range": "a number that its field can't hold, NaN or Infinity",
    "bad_timestamp": "a time that can't be read, or is before 1970 or after 2262",
    "future_timestamp": "a time later than now plus `max_future`",
    "too_large": "a value, or the row, is over its limit",
    "too_deep": "objects or arrays nested deeper than `max_depth`",
    "bad_field_name": "a field name that is empty or longer than 200 characters",
    "new_field": "a field that the topic doesn't have, and its on_new_field is freeze",
    "too_many_fields": "the field would take the topic over its `max_fields`",
    "bad_csv_row": "a CSV row with more or fewer cells than the header, or broken quotes",
    "no_match": "a log line that doesn't fit the log format",
}
"""Every code that a Reject from this package can have."""
