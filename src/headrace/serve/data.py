"""Reading what was stored: `GET /data`, SQL queries, topics, sensors, dead letters."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from headrace.serve.answers import FORMATS, Format, answer, encode_table
from headrace.serve.problems import ProblemError, did_you_mean
from headrace.serve.runtime import Runtime
from headrace.serve.workers import Workers
from headrace.store import Answer, Page
from headrace.units import Duration

MAX_LIMIT = 1_000
MAX_QUERY_ROWS = 100_000
_RELATIVE = re.compile(r"(?:now)?\s*-\s*(\S+)")
_LOST_PLUS = re.compile(r"(\d\d:\d\d(?::\d\d(?:\.\d+)?)?) (\d\d:?\d\d)$")


class SqlQuery(BaseModel):
    """A read-only query."""

    model_config = ConfigDict(extra="forbid")

    sql: Annotated[
        str,
        Field(
            min_length=1,
            max_length=100_000,
            examples=["SELECT metric, avg(value) FROM measurements GROUP BY 1"],
        ),
    ]
    format: Format = "json"
    max_rows: Annotated[int, Field(ge=1, le=MAX_QUERY_ROWS)] = 1_000


def data_routes(runtime: Runtime, workers: Workers) -> APIRouter:
    """The routes. Queries run on `workers`, so that a heavy one holds up neither ingest nor the page."""
    router = APIRouter(tags=["data"])
    query_timeout = runtime.config.server.query_timeout.seconds

    @router.get("/data", summary="Stored rows, newest page by page", responses=FORMATS)
    async def data(
        request: Request,
        topic: Annotated[str, Query(description="topic to read", max_length=200)] = "measurements",
        source_id: Annotated[
            str | None, Query(description="only this source or sensor", max_length=1_000)
        ] = None,
        metric: Annotated[str | None, Query(description="only this metric", max_length=1_000)] = None,
        start_time: Annotated[
            str | None,
            Query(
                description="first time wanted: ISO 8601, epoch seconds, or relative such as -5m",
                max_length=64,
            ),
        ] = None,
        end_time: Annotated[
            str | None, Query(description="time before which rows are wanted", max_length=64)
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        cursor: Annotated[
            str | None, Query(description="`next_cursor` of the page before", max_length=4_000)
        ] = None,
        order: Annotated[
            Literal["newest", "oldest"], Query(description="which end of time comes first")
        ] = "newest",
        written: Annotated[Format, Query(alias="format", description="how the rows are written")] = "json",
    ) -> Response:
        known = [name for name in runtime.log.topics() if not name.startswith("_")]
        if topic not in known:
            raise ProblemError(
                "unknown_topic", f"there is no topic {topic[:100]!r}{did_you_mean(topic, known)}"
            )
        if cursor and offset:
            raise _invalid("offset", "offset and cursor exclude each other; give one of them")
        now_us = runtime.clock.now_us()
        start_us = parse_time(start_time, "start_time", now_us)
        end_us = parse_time(end_time, "end_time", now_us)
        if start_us is not None and end_us is not None and start_us >= end_us:
            raise _invalid("start_time", "start_time must be before end_time")

        def page() -> Page:
            return runtime.store.data(
                topic, source_id=source_id, metric=metric, start_us=start_us, end_us=end_us,
                limit=limit, offset=offset, cursor=cursor or None,
                newest_first=order == "newest", timeout=query_timeout,
            )  # fmt: skip

        table, next_cursor = await workers.run(page)
        headers = {}
        if next_cursor is not None:
            # The next page asks for the very same span: relative times would have moved on.
            asked = {
                "topic": topic, "source_id": source_id, "metric": metric, "start_time": start_us, "end_time": end_us,
                "limit": limit, "cursor": next_cursor, "order": order, "format": written,
            }  # fmt: skip
            wanted = {name: value for name, value in asked.items() if value is not None}
            headers["Link"] = f'<{request.url.path}?{urlencode(wanted)}>; rel="next"'
        return await workers.run(encode_table, table, written, {"next_cursor": next_cursor}, headers)

    @router.post("/api/v1/query", summary="Read-only SQL over all topics", responses=FORMATS)
    async def query(body: SqlQuery) -> Response:
        def rows() -> Answer:
            return runtime.store.query(body.sql, max_rows=body.max_rows, timeout=query_timeout)

        table, truncated = await workers.run(rows)
        members = {
            "columns": [{"name": f.name, "type": str(f.type)} for f in table.schema],
            "truncated": truncated,
        }
        headers = {"X-Truncated": "true"} if truncated else {}
        return await workers.run(encode_table, table, body.format, members, headers)

    @router.get("/api/v1/topics", summary="Topics with their columns and sizes")
    async def topics() -> Response:
        counts = (await workers.run(runtime.status)).get("topics", {})
        listed = [
            {
                "name": name,
                "columns": [
                    {"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in topic.schema
                ],
                "partitions": topic.partitions,
                "key": list(topic.key),
                "at": topic.at,
                "on_new_field": topic.on_new_field,
                "retention": str(topic.retention),
                "max_size": str(topic.max_size),
                **{key: value for key, value in counts.get(name, {}).items() if key != "partitions"},
            }
            for name, topic in sorted(runtime.log.topics().items())
            if not name.startswith("_")
        ]
        return answer({"data": listed, "count": len(listed)})

    @router.get("/api/v1/sensors", summary="Sensors seen so far")
    async def sensors(
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    ) -> Response:
        sql = f"SELECT * FROM sensors ORDER BY sensor_id LIMIT {limit:d} OFFSET {offset:d}"  # noqa: S608 - two checked integers

        def rows() -> Answer:
            return runtime.store.query(sql, max_rows=limit, timeout=query_timeout)

        table, _ = await workers.run(rows)
        return await workers.run(encode_table, table, "json", {}, {})

    @router.get("/api/v1/dead-letters", summary="Rows that could not be used, by cause")
    async def dead_letters() -> Response:
        causes = await workers.run(runtime.dead_letter_causes)
        return answer(
            {"data": causes, "count": len(causes), "total": sum(cause["count"] for cause in causes)}
        )

    return router


def parse_time(text: str | None, name: str, now_us: int) -> int | None:
    """Microseconds since 1970: from ISO 8601 (UTC unless it says otherwise), from an epoch in seconds, milliseconds or
    microseconds, from `now`, or from a time ago such as `-5m`."""
    if text is None or not text.strip():
        return None
    text = text.strip()
    if text == "now":
        return now_us
    if (match := _RELATIVE.fullmatch(text)) and not match[1].replace(".", "").isdigit():
        try:
            return now_us - Duration.parse(match[1]).us
        except ValueError as error:
            raise _invalid(name, str(error)) from None
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        scale = 1_000_000 if abs(number) < 1e11 else 1_000 if abs(number) < 1e14 else 1
        if not abs(number) * scale < 2**62:
            raise _invalid(name, f"{text!r} is no time")
        return int(text) * scale if re.fullmatch(r"-?\d+", text) else round(number * scale)
    try:
        # In a query string an unescaped + arrives as a blank.
        moment = dt.datetime.fromisoformat(
            _LOST_PLUS.sub(r"\1+\2", text) if "T" in text or "-" in text else text
        )
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise _invalid(
            name, f"{text!r} is no time; write 2026-01-31T12:00:00Z, an epoch in seconds, or -5m"
        ) from None


def _invalid(name: str, reason: str) -> ProblemError:
    return ProblemError(
        "invalid_request", f"{name}: {reason}", errors=[{"pointer": f"query/{name}", "reason": reason}]
    )
