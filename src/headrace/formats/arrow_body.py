"""Arrow IPC streams, checked before anything reads them: their bytes come from outside."""

from __future__ import annotations

import pyarrow as pa

from headrace.formats.faults import FormatFaultError


def read_arrow(body: bytes, *, max_rows: int, max_bytes: int) -> dict[str, pa.Array]:
    """The columns of a stream, in one piece each. Raises FormatFaultError."""
    try:
        with pa.ipc.open_stream(pa.BufferReader(body)) as stream:
            names = stream.schema.names
            if len(set(names)) < len(names):
                raise FormatFaultError("two columns of the Arrow stream have the same name")
            batches, rows, size = [], 0, 0
            for batch in stream:
                # Buffers may be compressed, so the size of the body is no bound on them.
                rows += batch.num_rows
                size += batch.nbytes
                if rows > max_rows or size > max_bytes:
                    raise FormatFaultError(
                        f"the Arrow stream has more than {max_rows} rows or {max_bytes} bytes", status=413
                    )
                batch.validate(full=True)
                batches.append(batch)
            if not rows:
                return {}
            whole = pa.concat_batches(batches)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise FormatFaultError(f"the body is not an Arrow stream: {str(error)[:200]}") from error
    return dict(zip(names, whole.columns, strict=True))
