"""Bodies of bytes to Rows and rejects: what HTTP push, files and queues share.

    decoded = decode(decompress(body, "gzip", max_bytes=2**26), media_type="application/json", topic=events, now_us=now)

Every row of the body is either in `decoded.rows` or in `decoded.rejects`, with its original bytes. Formats: JSON (object,
array), NDJSON, CSV with a header, Arrow streams; log lines by `parse_lines`.
"""

from __future__ import annotations

from headrace.formats.body import Decoded, decode, decode_columns
from headrace.formats.compression import decompress
from headrace.formats.faults import CODES, FormatFaultError, TooLargeError
from headrace.formats.loglines import LogLines, parse_lines
from headrace.formats.rows import Naming

__all__ = [
    "CODES", "Decoded", "FormatFaultError", "LogLines", "Naming", "TooLargeError",
    "decode", "decode_columns", "decompress", "parse_lines",
]  # fmt: skip
