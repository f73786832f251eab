"""A gate with a memory for MLflow's registered models: rules, a contest, a record of each move, a way back, lineage.

Importing this loads nothing of MLflow: each name below is imported when it is used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_gate.contest import Contest
    from mlflow_gate.decision import Decision, Evaluation, decide
    from mlflow_gate.errors import ConfigError, Conflict, GateError, ModelError, ServerError
    from mlflow_gate.follower import Follower
    from mlflow_gate.keys import log_learned
    from mlflow_gate.lineage import Link
    from mlflow_gate.record import Evidence, Move, Production, Status
    from mlflow_gate.registry import Registry
    from mlflow_gate.rules import Finding, Rule, Scores
    from mlflow_gate.server import connect

_MODULES = ("errors", "rules", "contest", "decision", "keys", "record", "lineage", "server", "registry", "follower")
__all__ = [
    "ConfigError", "Conflict", "Contest", "Decision", "Evaluation", "Evidence", "Finding", "Follower", "GateError",
    "Link", "ModelError", "Move", "Production", "Registry", "Rule", "Scores", "ServerError", "Status",
    "connect", "decide", "log_learned",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is used first."""
    modules = (importlib.import_module(f"{__name__}.{module}") for module in _MODULES * (name in __all__))
    for module in modules:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
