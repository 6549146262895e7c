"""headrace: a real-time data platform. Public names are imported when first used, so `import headrace` is quick.

import headrace as hr
hr.pipeline("heat", "events").where("payload.temperature > 30").to("hot")
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headrace.config import Config, load_config
    from headrace.errors import HeadraceError
    from headrace.pipeline import Pipeline, pipeline
    from headrace.runtime import Runtime
    from headrace.streamer import DataStreamer

_HOMES = {
    "Config": "headrace.config",
    "DataStreamer": "headrace.streamer",
    "HeadraceError": "headrace.errors",
    "Pipeline": "headrace.pipeline",
    "Runtime": "headrace.run",
    "load_config": "headrace.config",
}

__all__ = [
    "Config",
    "DataStreamer",
    "HeadraceError",
    "Pipeline",
    "Runtime",
    "__version__",
    "load_config",
    "pipeline",
]


class _Package(types.ModuleType):
    """`headrace.pipeline` is a module too, and importing it would put the module in the function's place."""

    @property
    def pipeline(self) -> Any:
        from headrace.pipeline import pipeline

        return pipeline

    @pipeline.setter
    def pipeline(self, module: Any) -> None:
        pass


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"headrace has no {name}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
