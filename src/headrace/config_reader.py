"""Turns a parsed configuration file into a `Config`, gathering problems instead of stopping at the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from headrace.component import Component, Sink, Source, Step, load
from headrace.config import (
    DATA_DIR,
    SHIPPED,
    Config,
    EngineOptions,
    ServerOptions,
    SinkEntry,
    SourceEntry,
    Start,
    TopicOptions,
    kinds,
)
from headrace.errors import ConfigError, Problem
from headrace.options import convert, hints_of, make, shown, suggest, type_name
from headrace.pipeline import Pipeline
from headrace.plan import plan_topics
from headrace.units import Duration
from headrace.yaml_positions import Document, parse_path, parse_value
from headrace.yaml_positions import Path as Place

C = TypeVar("C", bound=Component)
E = TypeVar("E")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_TOP = ("topics", "sources", "pipelines", "sinks", "server", "engine", "log", "data_dir")
_LOGS = ("sqlite", "memory")


class Reader:
    """Turns a document into a Config, gathering problems instead of stopping at the first."""

    def __init__(self, document: Document, warnings: Sequence[Problem] = (), *, ask: bool = True) -> None:
        self.document = document
        self.ask = ask
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = list(warnings)

    def report(self, place: Place, what: str, *, key: bool = False) -> None:
        while place and isinstance(place[-1], int) and place not in self.document.values:
            place = place[:-1]  # one bare value stands for a list of one
        problem = self.document.problem(place, what, key=key)
        if problem not in self.problems:
            self.problems.append(problem)

    def warn(self, place: Place, what: str) -> None:
        self.warnings.append(self.document.problem(place, what))

    def old_style(self) -> bool:
        value = self.document.value
        return isinstance(value, dict) and ("stream_config" in value or "data_sources" in value)

    def override(self, sets: Sequence[str]) -> None:
        """Lay `key.path=value` texts over the file."""
        if self.document.value is None:
            self.document.value = {}
        for text in sets:
            name, equals, value = text.partition("=")
            place = parse_path(name.strip())
            if not equals or not place:
                self.problems.append(Problem("", "write key.path=value", f"--set {text}"))
                continue
            try:
                self.document.put(place, parse_value(value), f"--set {text}")
            except ConfigError as error:
                self.problems += [Problem(name, p.what, f"--set {text}") for p in error.problems]
            except LookupError as error:
                self.problems.append(Problem(name, str(error), f"--set {text}"))

    # -- parts -------------------------------------------------------------------------------------

    def config(
        self, env: Mapping[str, str], data_dir: str | Path | None, host: str | None, port: int | None
    ) -> Config:
        root = self.document.value
        if root is None:
            root = {}
        if not isinstance(root, dict):
            self.report((), f"a mapping with {', '.join(_TOP)} is expected, not {shown(root)}")
            raise ConfigError(self.problems)
        for name in root:
            if name not in _TOP:
                self.report((name,), f"unknown key{suggest(name, _TOP)}", key=True)
        server = self._server(root.get("server"), env, host, port)
        engine = self._options(EngineOptions, root.get("engine"), "engine")
        directory = self._data_dir(root, env, data_dir)
        log = convert(root.get("log", "sqlite"), str, ("log",), self.report)
        if log is not None and log.partition("://")[0] not in _LOGS:
            self.report(("log",), f"there is no log {log!r}{suggest(log, _LOGS)}")
        topics = self._topics(root)
        sources = self._named(root, "sources", self._source)
        pipelines = self._named(root, "pipelines", self._pipeline)
        sinks = self._named(root, "sinks", lambda place, entry: self._sink(place, entry, directory))

        planned = plan_topics(
            topics,
            sources,
            pipelines,
            sinks,
            self._broken(root, sources=sources, pipelines=pipelines),
            self.report,
            None if self.ask else self.warn,
        )
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda p: (not p.line, p.line, p.column)))
        return Config(
            topics=planned, sources=sources, pipelines=pipelines, sinks=sinks, log=log, data_dir=directory,
            server=server, engine=engine, warnings=tuple(self.warnings), file="" if self.document.file == SHIPPED else self.document.file,
        )  # fmt: skip

    def _broken(self, root: Mapping[str, Any], **found: Mapping[str, Any]) -> bool:
        """Whether a part is missing because of its own problem: what it would write isn't known then."""
        given = {name: root.get(name) or {} for name in found}
        return any(
            not isinstance(value, dict) or len(found[name]) < len(value) for name, value in given.items()
        )

    def _options(self, cls: type[Any], value: Any, name: str) -> Any:
        if value is None:
            return cls()
        if not isinstance(value, dict):
            self.report((name,), f"{type_name(cls)} is expected, not {shown(value)}")
            return cls()
        return make(cls, value, (name,), self.report) or cls()

    def _server(
        self, value: Any, env: Mapping[str, str], host: str | None, port: int | None
    ) -> ServerOptions:
        options: ServerOptions = self._options(ServerOptions, value, "server")
        host = host or env.get("HEADRACE_HOST")
        if host:
            options = msgspec.structs.replace(options, host=host)
        if port is None and env.get("HEADRACE_PORT"):
            if not env["HEADRACE_PORT"].isdigit():
                self.problems.append(
                    Problem("HEADRACE_PORT", f"{env['HEADRACE_PORT']!r} is not a port number")
                )
                return options
            port = int(env["HEADRACE_PORT"])
        if port is not None:
            if not 0 <= port <= 65535:
                self.problems.append(Problem("port", f"must be from 0 to 65535, not {port}"))
            options = msgspec.structs.replace(options, port=port)
        return options

    def _data_dir(self, root: Mapping[str, Any], env: Mapping[str, str], given: str | Path | None) -> Path:
        if given is None:
            given = env.get("HEADRACE_DATA_DIR") or convert(
                root.get("data_dir", DATA_DIR), str, ("data_dir",), self.report
            )
        return Path(given or DATA_DIR).expanduser().absolute()

    def _named(
        self, root: Mapping[str, Any], section: str, read: Callable[[Place, dict[str, Any]], E | None]
    ) -> dict[str, E]:
        value = root.get(section)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.report((section,), f"a mapping of names to {section} is expected, not {shown(value)}")
            return {}
        found: dict[str, E] = {}
        for name, entry in value.items():
            place: Place = (section, name)
            if not _NAME.fullmatch(name):
                self.report(
                    place,
                    "a name has letters, digits, _ and -, at most 63, and begins with a letter or digit",
                    key=True,
                )
            elif not isinstance(entry, dict):
                self.report(place, f"a mapping is expected, not {shown(entry)}")
            else:
                made = read(place, dict(entry))
                if made is not None:
                    found[name] = made
        return found

    def _topics(self, root: Mapping[str, Any]) -> dict[str, TopicOptions]:
        value = (
            {k: {} if v is None else v for k, v in root["topics"].items()}
            if isinstance(root.get("topics"), dict)
            else root.get("topics")
        )
        found = self._named(
            {"topics": value}, "topics", lambda place, entry: make(TopicOptions, entry, place, self.report)
        )
        for name in found:
            self._topic_name(name, ("topics", name), key=True)
        return found

    def _topic_name(self, value: Any, place: Place, *, key: bool = False) -> str:
        name = convert(value, str, place, self.report)
        if name is None:
            return ""
        if not _TOPIC.fullmatch(name):
            self.report(
                place,
                f"{name!r}: a topic's name has letters, digits and _, at most 63, and begins with a letter",
                key=key,
            )
        elif name == "sensors":
            self.report(place, "sensors is the table of known sensors; give the topic another name", key=key)
        return str(name)

    def _source(self, place: Place, entry: dict[str, Any]) -> SourceEntry | None:
        topic = self._topic_name(entry.pop("to", "events"), (*place, "to"))
        enabled = convert(entry.pop("enabled", True), bool, (*place, "enabled"), self.report)
        source = self._component("sources", Source, place, entry)
        return SourceEntry(str(place[-1]), source, topic, bool(enabled)) if source and topic else None

    def _sink(self, place: Place, entry: dict[str, Any], data_dir: Path) -> SinkEntry | None:
        topics = self._from(place, entry)
        start = convert(entry.pop("start", "earliest"), Start, (*place, "start"), self.report)
        sink = self._component("sinks", Sink, place, entry)
        if sink is None or not topics or start is None:
            return None
        # A relative place of a sink is in the data directory: everything that headrace keeps is in one folder.
        target = getattr(sink, "path", None)
        if (
            isinstance(target, str)
            and target
            and "://" not in target
            and not Path(target).expanduser().is_absolute()
        ):
            sink = msgspec.structs.replace(sink, path=str(data_dir / target))
        return SinkEntry(str(place[-1]), sink, topics, start)

    def _from(self, place: Place, entry: dict[str, Any]) -> tuple[str, ...]:
        if "from" not in entry:
            self.report(place, "from is missing: the topic to read, or a list of them")
            return ()
        topics = convert(entry.pop("from"), tuple[str, ...], (*place, "from"), self.report) or ()
        if topics == () and not any(
            p.where.startswith(".".join(map(str, place)) + ".from") for p in self.problems
        ):
            self.report((*place, "from"), "name at least one topic")
        return tuple(dict.fromkeys(t for t in topics if t is not None))

    def _component(
        self, family: Literal["sources", "sinks"], cls: type[C], place: Place, entry: dict[str, Any]
    ) -> C | None:
        if "kind" not in entry:
            self.report(place, f"kind is missing; there are {', '.join(kinds(family))}")
            return None
        kind = convert(entry.pop("kind"), str, (*place, "kind"), self.report)
        found = self._load(family, cls, kind, (*place, "kind")) if kind is not None else None
        return make(found, entry, place, self.report) if found else None

    def _load(
        self,
        family: Literal["sources", "steps", "sinks"],
        cls: type[C],
        kind: str,
        place: Place,
        *,
        key: bool = False,
    ) -> type[C] | None:
        try:
            found = load(family, str(kind))
        except LookupError as error:
            self.report(place, f"{error}{suggest(kind, kinds(family))}", key=key)
        except ImportError as error:
            self.report(place, f"{kind} can't be imported: {error}; install the package it needs", key=key)
        else:
            if issubclass(found, cls):
                return found
            self.report(place, f"{kind} is not a {family[:-1]}", key=key)
        return None

    def _pipeline(self, place: Place, entry: dict[str, Any]) -> Pipeline | None:
        before = len(self.problems)
        topics = self._from(place, entry)
        steps = self._steps(entry.pop("steps", ()), (*place, "steps"))
        if "to" in entry:
            output = self._topic_name(entry.pop("to"), (*place, "to"))
        else:
            output = ""
            self.report(place, "to is missing: the topic that the rows go to")
        key = convert(entry.pop("key", ()), tuple[str, ...], (*place, "key"), self.report)
        delay = convert(entry.pop("delay", "0s"), Duration, (*place, "delay"), self.report)
        idle_after = convert(entry.pop("idle_after", "5s"), Duration, (*place, "idle_after"), self.report)
        for name in entry:
            self.report(
                (*place, name),
                f"unknown option{suggest(name, ('from', 'steps', 'to', 'key', 'delay', 'idle_after'))}",
                key=True,
            )
        if len(self.problems) > before:
            return None
        return Pipeline(str(place[-1]), topics, tuple(steps), output, key, delay, idle_after)

    def _steps(self, value: Any, place: Place) -> list[Step]:
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            self.report(place, f"a list of steps is expected, not {shown(value)}")
            return []
        made = [self._step(entry, (*place, i)) for i, entry in enumerate(value)]
        return [step for step in made if step is not None]

    def _step(self, entry: Any, place: Place) -> Step | None:
        if isinstance(entry, str):
            entry = {entry: None}  # `- dedupe`: a step with nothing but defaults
        if not isinstance(entry, dict) or len(entry) != 1:
            what = (
                "one step each, such as `- where: ...`" if isinstance(entry, dict) else f"not {shown(entry)}"
            )
            self.report(place, f"a step is `kind: options`; {what}")
            return None
        ((kind, options),) = entry.items()
        here = (*place, kind)
        found = self._load("steps", Step, kind, here, key=True)
        if found is None:
            return None
        if options is None:
            options = {}
        short = found.shorthand
        if short and self._is_shorthand(found, options):
            # The option's own position is the step's; it stands there without its name.
            report = self._unnamed(here, short)
            return make(found, {short: options}, here, report)
        if not isinstance(options, dict):
            self.report(here, f"{type_name(found)} is expected, not {shown(options)}")
            return None
        return make(found, options, here, self.report)

    def _is_shorthand(self, found: type[Step], options: Any) -> bool:
        """Whether a step's value is that of its main option, rather than a mapping of options."""
        if not isinstance(options, dict):
            return True
        fields = {f.encode_name: f.name for f in msgspec.structs.fields(found)}
        takes_mapping = "mapping" in type_name(hints_of(found)[found.shorthand])
        return bool(options) and takes_mapping and not set(options) & fields.keys()

    def _unnamed(self, here: Place, short: str) -> Callable[..., None]:
        def report(place: Place, what: str, *, key: bool = False) -> None:
            if place[: len(here) + 1] == (*here, short):
                place = (*here, *place[len(here) + 1 :])
            self.report(place, what, key=key)

        return report
