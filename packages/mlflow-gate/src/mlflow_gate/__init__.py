"""A promotion gate for MLflow's registered models: rules, champion comparison, history, rollback and lineage.

Importing this package does not import MLflow.
"""

from mlflow_gate.comparison import Comparison
from mlflow_gate.decision import Decision, Evaluation, decide
from mlflow_gate.errors import ConfigError, Conflict, GateError, ModelError, ServerError
from mlflow_gate.follower import Follower
from mlflow_gate.gate import Gate
from mlflow_gate.keys import log_learned
from mlflow_gate.lineage import Link
from mlflow_gate.record import EvaluatedModel, Move, Production
from mlflow_gate.registry import Registry
from mlflow_gate.rules import Finding, Rule, Scores
from mlflow_gate.server import connect

__all__ = [
    "Comparison", "ConfigError", "Conflict", "Decision", "EvaluatedModel", "Evaluation", "Finding", "Follower", "Gate",
    "GateError", "Link", "ModelError", "Move", "Production", "Registry", "Rule", "Scores", "ServerError", "connect",
    "decide", "log_learned",
]  # fmt: skip
