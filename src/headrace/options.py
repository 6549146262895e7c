"""Options as text and numbers become the typed fields of a frozen description; every mistake is reported, not the first.

Types understood: those of msgspec, `Duration`, `Size`, lists, mappings, nested structs, Literal and unions of them.
A bare value where a list is asked for is a list of one.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from headrace.component import Component
from headrace.errors import ConfigError, PlanError, Problem
from headrace.units import Duration, Size
from headrace.yaml_positions import Path, Substituted, dotted

S = TypeVar("S", bound=msgspec.Struct)

Report = Callable[..., None]
"""report(path, what, key=False): notes a mistake at a path below the struct being made."""

_UNITS: dict[type, str] = {
    Duration: "a duration such as 10s, 500ms or 1h30m",
    Size: "a size such as 64MiB or 2GB",
}
_WORDS: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", bytes: "bytes",
    type(None): "nothing", dict: "a mapping", list: "a list",
}  # fmt: skip


def build(cls: type[Component], options: Mapping[str, Any], *, where: str) -> Component:
    """A component from its options. Raises ConfigError with every unknown, missing and unfit option."""
    problems: list[Problem] = []

    def report(path: Path, what: str, *, key: bool = False) -> None:
        place = dotted(path)
        text = (
            where + (place if place.startswith("[") or not place or not where else f".{place}")
            if where
            else place
        )
        problems.append(Problem(text, what))

    made = make(cls, options, (), report)
    if made is None:
        raise ConfigError(problems)
    return made


def make(cls: type[S], options: Mapping[str, Any], path: Path, report: Report) -> S | None:
    """A struct from plain values, or None after reporting what is wrong with them."""
    failed = False

    def noted(at: Path, what: str, *, key: bool = False) -> None:
        nonlocal failed
        failed = True
        report(at, what, key=key)

    fields = {f.encode_name: f for f in msgspec.structs.fields(cls)}
    hints = hints_of(cls)
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in fields:
            noted((*path, name), f"unknown option{suggest(name, fields)}", key=True)
            continue
        f = fields[name]
        values[f.name] = convert(value, hints[f.name], (*path, name), noted)
    for name, f in fields.items():
        if f.required and name not in options:
            noted(path, f"{name} is missing: {describe(hints[f.name]) or type_name(hints[f.name])}")
    if failed:
        return None
    made = cls(**values)
    if isinstance(made, Component):
        try:
            made.check()
        except PlanError as error:
            noted(path, str(error))
            return None
        except ConfigError as error:
            for problem in error.problems:
                noted(path, f"{problem.where}: {problem.what}" if problem.where else problem.what)
            return None
    return made


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field name to annotated type."""
    return get_type_hints(cls, include_extras=True)


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or what there is when nothing is near."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(name, names, 1, 0.6) or difflib.get_close_matches(
        name.lower(), names, 1, 0.6
    )
    if near:
        return f"; did you mean {near[0]}?"
    if not names:
        return "; there are none here"
    return f"; there are {', '.join(sorted(names)[:30])}"


def describe(hint: Any) -> str:
    """The description given with `option(...)`."""
    return next((m.description for m in metas_of(hint) if m.description), "")


def metas_of(hint: Any) -> list[msgspec.Meta]:
    """What `option(...)` left on a type."""
    return [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta)]


def bare_type(hint: Any) -> Any:
    """The type without its annotations."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return getattr(hint, "__value__", hint)


def type_name(hint: Any) -> str:
    """The type in words, for messages and the reference."""
    bare = bare_type(hint)
    origin, args = get_origin(bare), get_args(bare)
    if bare in _UNITS:
        return _UNITS[bare]
    if bare in _WORDS:
        return _WORDS[bare]
    if origin is Literal:
        return " or ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args if a is not type(None))
    if origin in LISTS:
        return f"a list of {_plural(args[0])}" if args else "a list"
    if origin in MAPPINGS:
        return f"a mapping of names to {_plural(args[1])}" if len(args) == 2 else "a mapping"
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return f"a mapping with {', '.join(bare.__struct_fields__)}"
    return "any value" if bare is Any else getattr(bare, "__name__", str(bare))


_PLURALS = {
    str: "texts",
    int: "whole numbers",
    float: "numbers",
    bool: "true or false",
    Duration: "durations",
    Size: "sizes",
}


def _plural(hint: Any) -> str:
    bare = bare_type(hint)
    return _PLURALS.get(bare, type_name(bare)) if isinstance(bare, type) else type_name(bare)


LISTS = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Set,
    collections.abc.Collection,
)
MAPPINGS = (dict, collections.abc.Mapping)


def convert(value: Any, hint: Any, path: Path, report: Report) -> Any:
    """`value` as the type `hint` says, or None after reporting."""
    bare, metas = bare_type(hint), metas_of(hint)
    origin, args = get_origin(bare), get_args(bare)
    if origin in (Union, types.UnionType):
        result = _union(value, args, metas, path, report)
    elif bare is Any or bare is object:
        result = plain(value)
    elif bare in (Duration, Size):
        result = _unit(value, bare, metas, path, report)
    elif origin in LISTS or bare in LISTS:
        result = _list(value, origin or bare, args, metas, path, report)
    elif origin in MAPPINGS or bare in MAPPINGS:
        result = _mapping(value, args, metas, path, report)
    elif isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        if isinstance(value, bare):
            return value
        if not isinstance(value, Mapping):
            return report(path, f"{type_name(bare)} is expected, not {shown(value)}")
        result = make(bare, value, path, report)
    elif origin is Literal:
        result = _literal(value, args, path, report)
    else:
        result = _leaf(value, bare, metas, path, report)
    return result


def _leaf(value: Any, bare: Any, metas: list[msgspec.Meta], path: Path, report: Report) -> Any:
    if value is None and bare in _WORDS:
        return report(path, f"{type_name(bare)} is expected, but nothing is given")
    if bare is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return report(path, f"a text is expected, not the number {value}; write it in quotes")
    hint = Annotated[bare, *metas] if metas else bare
    strict = not isinstance(value, Substituted)
    try:
        return msgspec.convert(plain(value), hint, strict=strict)
    except (msgspec.ValidationError, TypeError) as error:
        message = str(error)
        if message.startswith(("Expected `", "Invalid ")) and not any(
            w in message for w in ("`str` matching", "of length", ">=", "<=", " > ", " < ")
        ):
            return report(path, f"{type_name(bare)} is expected, not {shown(value)}")
        if "matching regex" in message and metas:
            examples = next((m.examples for m in metas if m.examples), None)
            hint_text = f"; for instance {examples[0]}" if examples else ""
            return report(path, f"{shown(value)} does not have the right form{hint_text}")
        return report(path, f"{_limits(metas) or message}, not {shown(value)}")


def limits(hint: Any) -> str:
    """The limits of an option in words, for the reference."""
    unit = {Duration: " s", Size: " bytes"}.get(bare_type(hint), "")
    return _limits(metas_of(hint), unit).removeprefix("must be ")


def _limits(metas: Sequence[msgspec.Meta], unit: str = "") -> str:
    parts: list[str] = []
    for m in metas:
        for limit, words in ((m.ge, "at least"), (m.gt, "more than"), (m.le, "at most"), (m.lt, "less than")):
            if limit is not None:
                parts.append(f"{words} {limit:g}{unit}")
        if m.min_length:
            parts.append(f"at least {m.min_length} {'character' if m.min_length == 1 else 'long'}")
    return "must be " + " and ".join(parts) if parts else ""


def _within(number: float, metas: Sequence[msgspec.Meta]) -> bool:
    return all(
        (m.ge is None or number >= m.ge) and (m.gt is None or number > m.gt)
        and (m.le is None or number <= m.le) and (m.lt is None or number < m.lt)
        for m in metas
    )  # fmt: skip


def _unit(value: Any, bare: Any, metas: list[msgspec.Meta], path: Path, report: Report) -> Any:
    if not isinstance(value, (str, int, float, Duration, Size)):
        return report(path, f"{_UNITS[bare]} is expected, not {shown(value)}")
    try:
        made = bare.parse(plain(value))
    except (ValueError, TypeError, OverflowError) as error:
        return report(path, str(error))
    # Limits of a duration are seconds, those of a size bytes.
    number, unit = (made.seconds, " s") if isinstance(made, Duration) else (made.bytes, " bytes")
    if not _within(number, metas):
        return report(path, f"{_limits(metas, unit)}, not {made}")
    return made


def _union(value: Any, args: tuple[Any, ...], metas: list[msgspec.Meta], path: Path, report: Report) -> Any:
    if value is None and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    # A member of exactly the value's type comes first, so that 5 for `Duration | int` stays 5.
    members.sort(key=lambda a: bare_type(a) is not type(value))
    tried: list[list[tuple[Path, str, bool]]] = []
    for member in members:
        failures: list[tuple[Path, str, bool]] = []

        def note(at: Path, what: str, *, key: bool = False, into: list[Any] = failures) -> None:
            into.append((at, what, key))

        result = convert(value, Annotated[member, *metas] if metas else member, path, note)
        if not failures:
            return result
        tried.append(failures)
    # The member that got furthest into the value is the one that was meant.
    deepest = max(tried, key=lambda failures: max(len(at) for at, _, _ in failures))
    if len(members) == 1 or any(len(at) > len(path) for at, _, _ in deepest):
        for at, what, key in deepest:
            report(at, what, key=key)
    else:
        report(path, f"{' or '.join(type_name(m) for m in members)} is expected, not {shown(value)}")
    return None


def _list(
    value: Any, origin: Any, args: tuple[Any, ...], metas: list[msgspec.Meta], path: Path, report: Report
) -> Any:
    if isinstance(value, (str, bytes, int, float, bool)) and not (isinstance(value, str) and value == ""):
        value = [value]
    if (
        isinstance(value, Mapping)
        and args
        and isinstance(bare_type(args[0]), type)
        and issubclass(bare_type(args[0]), msgspec.Struct)
    ):
        value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        inner = f" of {_plural(args[0])}" if args else ""
        return report(path, f"a list{inner} is expected, not {shown(value)}")
    items = list(value)
    if origin is tuple and args and not (len(args) == 2 and args[1] is Ellipsis):
        if len(items) != len(args):
            return report(path, f"a list of {len(args)} values is expected, not of {len(items)}")
        made = [convert(item, args[i], (*path, i), report) for i, item in enumerate(items)]
    else:
        each = args[0] if args else Any
        made = [convert(item, each, (*path, i), report) for i, item in enumerate(items)]
    for m in metas:
        if m.min_length is not None and len(made) < m.min_length:
            return report(path, f"needs at least {m.min_length}")
        if m.max_length is not None and len(made) > m.max_length:
            return report(path, f"may have at most {m.max_length}")
    if origin in (list, set, frozenset):
        return origin(made)
    return tuple(made)


def _mapping(value: Any, args: tuple[Any, ...], metas: list[msgspec.Meta], path: Path, report: Report) -> Any:
    if not isinstance(value, Mapping):
        names = f" of names to {_plural(args[1])}" if len(args) == 2 else ""
        return report(path, f"a mapping{names} is expected, not {shown(value)}")
    for m in metas:
        if m.min_length is not None and len(value) < m.min_length:
            return report(path, f"needs at least {m.min_length}")
    key, inner = args if len(args) == 2 else (str, Any)
    if key is str:
        return {str(k): convert(v, inner, (*path, str(k)), report) for k, v in value.items()}
    return {
        convert(Substituted(k), key, (*path, str(k)), report): convert(v, inner, (*path, str(k)), report)
        for k, v in value.items()
    }


def _literal(value: Any, args: tuple[Any, ...], path: Path, report: Report) -> Any:
    for choice in args:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
        if isinstance(value, Substituted) and str(choice).lower() == value.lower():
            return choice
    return report(path, f"{shown(value)} is not one of {', '.join(str(a) for a in args)}{_near(value, args)}")


def _near(value: Any, choices: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def plain(value: Any) -> Any:
    """The value without the marks of substitution."""
    if isinstance(value, Substituted):
        return str(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value


def shown(value: Any) -> str:
    """A value in an error message, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
