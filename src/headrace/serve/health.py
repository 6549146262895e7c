"""Whether it works and how fast: health, readiness, Prometheus metrics, and starting and stopping sources."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field

from headrace import __version__
from headrace.errors import ConfigError
from headrace.serve.answers import answer
from headrace.serve.problems import ProblemError, did_you_mean
from headrace.serve.runtime import Runtime
from headrace.serve.workers import Workers


class StartStream(BaseModel):
    """Which source to start."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(min_length=1, max_length=200, description="its name in the configuration")]
    interval: Annotated[
        str | float | None,
        Field(description="how often to read, for sources that poll: 5, 5s, 500ms", examples=["5s"]),
    ] = None


class StopStream(BaseModel):
    """Which source to stop."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[
        str | None, Field(max_length=200, description="its name; all sources when left out")
    ] = None


def health_routes(runtime: Runtime, workers: Workers) -> APIRouter:
    """The routes. They run on `workers` of their own: they must answer while everything else is busy."""
    router = APIRouter(tags=["operation"])

    @router.get("/api/v1/health", summary="Health of every component, with reasons")
    @router.get("/health", include_in_schema=False)
    async def health() -> Response:
        found = await workers.run(runtime.health)
        return answer(found, 503 if found["status"] == "failing" else 200, {"Cache-Control": "no-store"})

    @router.get("/ready", summary="200 once requests can be served, 503 before", tags=["operation"])
    async def ready() -> Response:
        found = await workers.run(runtime.health)
        if not found["ready"]:
            waiting = [c["name"] for c in found["components"] if c["status"] != "ok"]
            raise ProblemError(
                "unavailable", "starting" + (f": {', '.join(waiting)}" if waiting else ""), retry_after=1
            )
        return answer({"ready": True}, headers={"Cache-Control": "no-store"})

    @router.get("/metrics", summary="Prometheus metrics, as OpenMetrics when asked by Accept")
    async def metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        text = await workers.run(encode, runtime.registry)
        return Response(text, 200, {"Content-Type": media_type, "Cache-Control": "no-store"})

    @router.get("/api/stream/status", summary="Sources, pipelines, sinks and topics at work")
    async def status() -> Response:
        found = {"version": __version__, **await workers.run(runtime.status)}
        return answer(found, headers={"Cache-Control": "no-store"})

    @router.post("/api/stream/start", summary="Start a source")
    async def start(body: StartStream) -> Response:
        interval = body.interval if body.interval is None else str(body.interval)
        return await _control(body.source, lambda: runtime.start(body.source, interval))

    @router.post("/api/stream/stop", summary="Stop a source, or all")
    async def stop(body: StopStream | None = None) -> Response:
        source = body.source if body else None
        return await _control(source, lambda: runtime.stop(source))

    async def _control(source: str | None, act: Any) -> Response:
        try:
            await workers.run(act)
        except LookupError as error:
            known = (await workers.run(runtime.status)).get("sources", {})
            detail = f"there is no source {str(source)[:100]!r}{did_you_mean(str(source), known)}"
            raise ProblemError("unknown_source", detail) from error
        except (ValueError, ConfigError) as error:
            raise ProblemError("invalid_request", str(error)) from error
        sources = (await workers.run(runtime.status)).get("sources", {})
        wanted = sources if source is None else {source: sources.get(source, {})}
        return answer({"sources": wanted})

    return router
