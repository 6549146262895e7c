"""Content encodings of a body, undone with a hard limit on what comes out."""

from __future__ import annotations

import zlib

import zstandard

from headrace.formats.faults import FormatFaultError, TooLargeError

_GZIP = 31  # zlib's number for the gzip header
_ZLIB_INPUT = 4_096  # small, so that a body of many tiny members is not copied over and over
_ZSTD_INPUT = 512  # a zstd block of 4 bytes can stand for 128 KiB, so this bounds one step to 16 MiB
_ZSTD_WINDOW = 8 * 2**20  # what RFC 8878 asks every decoder to accept, and no more
_MOST_ENCODINGS = 3


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """`body` without its content encodings (`gzip`, `deflate`, `zstd`, `identity`; several as `gzip, zstd`).

    Never holds more than about `max_bytes` plus 16 MiB. Raises TooLargeError beyond `max_bytes`, FormatFaultError for an
    unknown encoding (415) or a broken or cut off stream (400).
    """
    names = [
        name
        for name in (part.strip().lower() for part in encoding.split(","))
        if name not in ("", "identity")
    ]
    if len(names) > _MOST_ENCODINGS:
        raise FormatFaultError(
            f"at most {_MOST_ENCODINGS} content encodings are accepted, not {len(names)}", status=415
        )
    for name in names:
        if name not in ("gzip", "x-gzip", "deflate", "zstd"):
            raise FormatFaultError(
                f"there is no content encoding {name!r}; gzip, deflate, zstd and identity are accepted",
                status=415,
            )
    for name in reversed(names):  # listed in the order in which they were applied
        if name == "zstd":
            body = _unzstd(body, max_bytes)
        elif name == "deflate":
            # By the standard a zlib stream; some senders leave its two-byte header out.
            zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
            body = _inflate(body, 15 if zlib_header else -15, name, max_bytes)
        else:
            body = _inflate(body, _GZIP, "gzip", max_bytes)
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {max_bytes} bytes; send it in smaller parts")


def _inflate(body: bytes, window: int, name: str, max_bytes: int) -> bytes:
    out = bytearray()
    at = 0
    while True:  # a gzip file may have several members
        stream = zlib.decompressobj(window)
        while not stream.eof:
            if at >= len(body):
                raise FormatFaultError(f"the {name} body ends in the middle")
            part = body[at : at + _ZLIB_INPUT]
            try:
                out += stream.decompress(part, max_bytes + 1 - len(out))
            except zlib.error as error:
                raise FormatFaultError(f"the body is not {name}: {error}") from error
            if len(out) > max_bytes:
                raise _too_large(max_bytes)
            at += len(part)
        at -= len(stream.unused_data)
        if window != _GZIP or not body[at : at + _ZLIB_INPUT].strip(b"\0"):
            return bytes(out)


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    out = bytearray()
    at = 0
    while at < len(body) or not at:
        stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        while not stream.eof:
            if at >= len(body):
                raise FormatFaultError("the zstd body ends in the middle")
            part = body[at : at + _ZSTD_INPUT]
            try:
                out += stream.decompress(part)
            except zstandard.ZstdError as error:
                raise FormatFaultError(f"the body is not zstd: {error}") from error
            at += len(part)
            if len(out) > max_bytes:
                raise _too_large(max_bytes)
        at -= len(stream.unused_data)
    return bytes(out)
