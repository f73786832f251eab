"""A gate with a memory for MLflow's registered models: rules, a contest, a record of each move, a way back, lineage.

Importing this loads nothing of MLflow: each name below is imported when it is used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_gate.alias import Evidence, Production, Status
    from mlflow_gate.contest import Contest
    from mlflow_gate.decision import Decision, Evaluation, decide
    from mlflow_gate.errors import ConfigError, Conflict, GateError, ModelError, Refused, ServerError
    from mlflow_gate.follower import Follower
    from mlflow_gate.learned import Learned, log_learned
    from mlflow_gate.lineage import Link
    from mlflow_gate.moves import Move
    from mlflow_gate.registry import Registry
    from mlflow_gate.rules import Rule
    from mlflow_gate.scores import Scores

_MODULES = {
    "Contest": "contest", "Decision": "decision", "Evaluation": "decision", "decide": "decision",
    "ConfigError": "errors", "Conflict": "errors", "GateError": "errors", "ModelError": "errors", "Refused": "errors",
    "ServerError": "errors", "Follower": "follower", "Learned": "learned", "log_learned": "learned", "Link": "lineage",
    "Move": "moves", "Evidence": "alias", "Production": "alias", "Registry": "registry", "Status": "alias",
    "Rule": "rules", "Scores": "scores",
}  # fmt: skip
__all__ = [
    "ConfigError", "Conflict", "Contest", "Decision", "Evaluation", "Evidence", "Follower", "GateError", "Learned",
    "Link", "ModelError", "Move", "Production", "Refused", "Registry", "Rule", "Scores", "ServerError", "Status",
    "decide", "log_learned",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is used first."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
