"""The JSON schema of a configuration file, from the component classes: an editor completes and checks with it."""

from __future__ import annotations

import inspect
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from headrace.component import Component, load
from headrace.config import EngineOptions, ServerOptions, TopicOptions, kinds
from headrace.options import LISTS, MAPPINGS, bare_type, describe, hints_of, metas_of
from headrace.units import Duration, Size

_DURATION = {"type": ["string", "number"], "examples": ["10s", "500ms", "1h30m"]}
_SIZE = {"type": ["string", "integer"], "examples": ["64MiB", "2GB"]}
_TEXTS = {"type": ["string", "array"], "items": {"type": "string"}}
_PLAIN = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    bytes: "string",
}


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the whole file."""
    steps = {
        "type": "array",
        "items": {"anyOf": [_step(kind) for kind in kinds("steps")] + [_foreign_step(), {"type": "string"}]},
    }
    pipeline = {
        "type": "object",
        "properties": {
            "from": _TEXTS, "steps": steps, "to": {"type": "string"}, "key": _TEXTS, "delay": _DURATION, "idle_after": _DURATION,
        },
        "required": ["from", "to"],
        "additionalProperties": False,
    }  # fmt: skip
    source = {"to": {"type": "string", "default": "events"}, "enabled": {"type": "boolean", "default": True}}
    sink = {"from": _TEXTS, "start": {"enum": ["earliest", "latest"], "default": "earliest"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headrace configuration",
        "$defs": {
            "variable": {
                "type": "string",
                "pattern": r"\$\{",
                "description": "filled in from the environment",
            }
        },
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "topics": {
                "type": "object",
                "additionalProperties": {"anyOf": [_struct(TopicOptions), {"type": "null"}]},
            },
            "sources": _components("sources", source, ["kind"]),
            "pipelines": {"type": "object", "additionalProperties": pipeline},
            "sinks": _components("sinks", sink, ["kind", "from"]),
            "server": _struct(ServerOptions),
            "engine": _struct(EngineOptions),
            "log": {"type": "string", "default": "sqlite"},
            "data_dir": {"type": "string", "default": "headrace-data"},
        },
    }


def _components(
    family: Literal["sources", "sinks"], common: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    choices = []
    for kind in kinds(family):
        schema = _struct(load(family, kind))
        schema["properties"] = {"kind": {"const": kind}, **common, **schema["properties"]}
        schema["required"] = [*required, *schema.get("required", [])]
        choices.append(schema)
    foreign = {
        "type": "object",
        "properties": {"kind": {"type": "string", "pattern": ":"}, **common},
        "required": required,
        "description": "A component from another package, as `package.module:Class`.",
    }
    return {"type": "object", "additionalProperties": {"anyOf": [*choices, foreign]}}


def _step(kind: str) -> dict[str, Any]:
    cls = load("steps", kind)
    options: list[dict[str, Any]] = [_struct(cls), {"type": "null"}]
    if cls.shorthand:
        options.append(_type(hints_of(cls)[cls.shorthand]))
    return {
        "type": "object",
        "properties": {kind: {"anyOf": options, "description": _summary(cls)}},
        "required": [kind],
        "additionalProperties": False,
    }


def _foreign_step() -> dict[str, Any]:
    return {
        "type": "object",
        "patternProperties": {":": {}},
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    }


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")


def _struct(cls: type[msgspec.Struct]) -> dict[str, Any]:
    hints = hints_of(cls)
    properties, required = {}, []
    for f in msgspec.structs.fields(cls):
        schema = _type(hints[f.name])
        if f.required:
            required.append(f.encode_name)
        elif f.default is not msgspec.NODEFAULT and f.default is not None:
            schema["default"] = (
                msgspec.to_builtins(f.default, enc_hook=str)
                if not isinstance(f.default, (Duration, Size))
                else str(f.default)
            )
        properties[f.encode_name] = schema
    schema = {
        "type": "object",
        "description": _summary(cls),
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    return schema


def _type(hint: Any) -> dict[str, Any]:
    schema = _bare_type(bare_type(hint))
    if description := describe(hint):
        schema["description"] = description
    for meta in metas_of(hint):
        numeric = schema.get("type") in ("integer", "number")
        for name, value in (
            ("minimum", meta.ge), ("exclusiveMinimum", meta.gt), ("maximum", meta.le), ("exclusiveMaximum", meta.lt),
        ):  # fmt: skip
            if value is not None and numeric:
                schema[name] = value
        if meta.pattern and schema.get("type") == "string":
            schema["pattern"] = meta.pattern
        if meta.examples:
            schema["examples"] = meta.examples
    if schema.get("type") in ("integer", "number", "boolean"):
        return {"anyOf": [schema, {"$ref": "#/$defs/variable"}]}
    return schema


def _bare_type(kind: Any) -> dict[str, Any]:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Duration:
        return dict(_DURATION)
    if kind is Size:
        return dict(_SIZE)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(a) for a in args]}
    if origin in LISTS:
        item = _type(args[0]) if args else {}
        return {"anyOf": [{"type": "array", "items": item}, item]} if item else {"type": "array"}
    if origin in MAPPINGS or kind is dict:
        return (
            {"type": "object", "additionalProperties": _type(args[1])}
            if len(args) == 2
            else {"type": "object"}
        )
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not issubclass(kind, Component):
        return _struct(kind)
    return {}
