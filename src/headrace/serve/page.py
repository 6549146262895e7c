"""The page at `/`, the API's own docs at `/docs`, and what both load. All of it comes from here: nothing from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headrace.serve.answers import answer
from headrace.serve.problems import KINDS, ProblemError

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGES = {"/": "index.html", "/docs": "docs.html", "/docs/problems": "problems.html"}


def page_routes(openapi: Callable[[], Mapping[str, Any]]) -> APIRouter:
    """The routes. The files are read once; they are small."""
    router = APIRouter(include_in_schema=False)
    assets = {
        file.name: (file.read_bytes(), _TYPES[file.name.rpartition(".")[2]])
        for file in files("headrace.serve").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }
    html, kind = assets["problems.html"]
    assets["problems.html"] = (html.replace(b"<!-- rows -->", _problem_rows().encode()), kind)
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, (content, _) in assets.items()}

    def file(name: str, request: Request) -> Response:
        if name not in assets:
            raise ProblemError("not_found", "there is no such file")
        headers = {"Cache-Control": "no-cache", "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(None, 304, headers)
        content, media_type = assets[name]
        return Response(content, 200, headers, media_type)

    def page_at(path: str, name: str) -> None:
        @router.get(path)
        async def page(request: Request) -> Response:
            return file(name, request)

    for path, name in _PAGES.items():
        page_at(path, name)

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        return file(name, request)

    @router.get("/favicon.ico")
    async def favicon(request: Request) -> Response:
        return file("icon.svg", request)

    @router.get("/openapi.json")
    async def schema() -> Response:
        return answer(openapi())

    return router


def _problem_rows() -> str:
    return "\n".join(
        f'<tr id="{code}"><th scope="row"><code>{code}</code></th><td>{kind.status}</td><td>{kind.title}</td><td>{kind.advice}</td></tr>'
        for code, kind in KINDS.items()
    )
