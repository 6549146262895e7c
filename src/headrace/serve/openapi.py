"""The OpenAPI description: FastAPI's own, plus the routes that are served without FastAPI."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_PROBLEM = {
    "description": "A problem (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_VERDICT = {"application/json": {"schema": {"$ref": "#/components/schemas/Verdict"}}}
_EVENT = {"source_id": "demo-1", "timestamp": "2026-01-31T12:00:00Z", "payload": {"temperature": 21.5}}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "the same key again gives the first answer and stores nothing twice",
}

_SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance", "code", "errors", "request_id"],
        "properties": {
            "type": {"type": "string", "description": "page that explains the code"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "what was wrong with this request"},
            "instance": {"type": "string", "description": "path of the request"},
            "code": {"type": "string", "description": "stable name of the kind of problem"},
            "errors": {"type": "array", "items": {"type": "object"}},
            "request_id": {"type": "string"},
        },
    },
    "Verdict": {
        "type": "object",
        "required": ["accepted", "rejected"],
        "properties": {
            "accepted": {"type": "integer", "description": "rows durable now"},
            "rejected": {"type": "integer", "description": "rows now in the dead letters"},
            "total": {"type": "integer"},
            "duplicate": {"type": "boolean", "description": "the idempotency key was seen before"},
            "errors": {
                "type": "array",
                "maxItems": 100,
                "items": {
                    "type": "object",
                    "properties": {
                        "row": {"type": "integer", "description": "index in what was sent, from 0"},
                        "code": {"type": "string"},
                        "reason": {"type": "string"},
                    },
                },
            },
        },
    },
}


def _ingest(summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    body = {
        "required": True,
        "content": {
            "application/json": {
                "example": _EVENT,
                "schema": {"description": "an event, or an array of events"},
            },
            "application/x-ndjson": {"schema": {"type": "string", "description": "one event a line"}},
            "text/csv": {"schema": {"type": "string", "description": "with a header line"}},
            "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    refused = dict.fromkeys(("400", "404", "408", "413", "415", "422", "429", "503", "507"), _PROBLEM)
    answers = {
        "200": {"description": "All rows are accepted and durable", "content": _VERDICT},
        "207": {"description": "Some rows are accepted, some rejected", "content": _VERDICT},
        **refused,
    }
    return {
        "post": {
            "tags": ["ingest"],
            "summary": summary,
            "parameters": [*parameters, _KEY],
            "requestBody": body,
            "responses": answers,
        }
    }


_TOPIC = {"name": "topic", "in": "path", "required": True, "schema": {"type": "string"}}
_SINCE = {"name": "since", "in": "query", "schema": {"type": "integer"}, "description": "last `seq` seen"}
_RAW: dict[str, Any] = {
    "/ingest": _ingest("Send events to the topic `events`", []),
    "/ingest/{topic}": _ingest("Send rows to a topic", [_TOPIC]),
    "/api/v1/stream": {
        "get": {
            "tags": ["live"],
            "summary": "Live updates as server-sent events",
            "parameters": [_SINCE],
            "responses": {"200": {"description": "frames", "content": {"text/event-stream": {}}}},
        }
    },
    "/ws/dashboard": {
        "get": {
            "tags": ["live"],
            "summary": "The same live updates as a WebSocket",
            "parameters": [_SINCE],
            "responses": {"101": {"description": "frames `{event, seq, at, data}`"}, "403": _PROBLEM},
        }
    },
}


def describe(api: FastAPI) -> dict[str, Any]:
    """The document served at `/openapi.json`. Made once."""
    if api.openapi_schema is None or "/ingest" not in api.openapi_schema["paths"]:
        document = api.openapi()
        document["paths"] = {**_RAW, **document["paths"]}
        document.setdefault("components", {}).setdefault("schemas", {}).update(_SCHEMAS)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"]["default"] = _PROBLEM
                if "422" in operation["responses"]:
                    operation["responses"]["422"] = _PROBLEM
        api.openapi_schema = document
    return api.openapi_schema
