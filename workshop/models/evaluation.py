"""What the gate is told of a model: it is fetched, loaded, asked and timed on the held-out hours."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import DataError, WorkshopError
from workshop.models import loading, promotion
from workshop.models.promotion import Evaluation
from workshop.models.registry import learned, learned_from, learned_hash
from workshop.models.tracking import connect

if TYPE_CHECKING:
    import pandas as pd

TIMES = 11

logger = logging.getLogger(__name__)


def evaluate(model_uri: str, tags: Mapping[str, str], held_out: pd.DataFrame) -> Evaluation:
    """Return what the model at ``model_uri`` shows on the processed frame ``held_out``; ``tags`` are those of its run.

    One that cannot be loaded or asked has a `trouble`; ServiceError is raised only when the tracking server is gone.
    """
    facts = {"learned": learned(tags), "learned_from": learned_from(tags), "data": learned_hash(tags)}
    try:
        model = loading.load(model_uri)
        predicted = model.predict(held_out).astype(float)
        latency = _milliseconds(model, held_out.iloc[:1])
        signature = _signature(model_uri)
    except (loading.ModelError, DataError) as error:  # the latter: hours of which it does not know the capacity
        connect()  # a server that is gone says nothing of the model
        return Evaluation(**facts, trouble=f"{error.what} {error.value}")
    except WorkshopError:
        raise
    except Exception as error:
        connect()
        # Whatever a model's own code raises when it is asked is a finding on the model.
        logger.warning("%s cannot be asked", model_uri, exc_info=True)
        return Evaluation(**facts, trouble=f"it fails when it is asked: {type(error).__name__}")
    size = model.size_bytes / 1e6
    scores = promotion.score(held_out, predicted)
    return Evaluation(scores, **facts, signature=signature, latency_ms=latency, size_MB=size)


def _milliseconds(model: loading.LoadedModel, hour: pd.DataFrame) -> float:
    """Return the time of a prediction for one hour: the least of some, since what else runs here only adds to it."""
    from threadpoolctl import threadpool_limits

    seconds = []
    with threadpool_limits(1):  # threads that wait for a busy core take longer than one alone
        for _ in range(TIMES):
            began = time.perf_counter()
            model.predict(hour)
            seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)


def _signature(model_uri: str) -> str | None:
    """Return a model's columns, in and out; None when it was logged without either."""
    from mlflow.models import get_model_info

    signature = get_model_info(model_uri).signature
    if signature is None:
        return None
    ends = ((signature.inputs, FEATURES), (signature.outputs, TARGETS))
    if None in (signature.inputs, signature.outputs):
        return None
    return " -> ".join(", ".join(_columns(json.loads(end.to_json()), names)) for end, names in ends)


def _columns(schema: list[dict], names: list[str]) -> list[str]:
    """Return a schema's names of columns; a nameless tensor of as many columns as ``names`` has those."""
    tensor = schema[0].get("tensor-spec") if len(schema) == 1 else None
    if tensor and "name" not in schema[0] and tensor["shape"] == [-1, len(names)]:
        return names
    return [column.get("name", "?") for column in schema]
