"""The registered model: which version is in production, and how another comes to be."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from workshop.errors import ModelError, PromotionRefused
from workshop.models.promotion import Decision, Policy, decide, score
from workshop.models.tracking import connect
from workshop.settings import PRODUCTION, REGISTERED_MODEL

if TYPE_CHECKING:
    import pandas as pd

TAG = "workshop.promotion."


@dataclass(frozen=True)
class Production:
    """The version that the alias `production` points at; ``r2`` and ``since`` are those of its promotion."""

    name: str
    version: str
    run_id: str
    model_uri: str
    stage: str | None
    r2: float | None
    since: str | None
    why: str | None
    run_url: str

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self)


def production() -> Production | None:
    """Return what is in production, or None when nothing is."""
    from workshop.models.tracking import run_url

    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(REGISTERED_MODEL, PRODUCTION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    tags = version.tags
    try:
        run = client.get_run(version.run_id) if version.run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None  # the run was purged; the version, with its own copy of the model, still serves
    return Production(
        name=REGISTERED_MODEL,
        version=str(version.version),
        run_id=version.run_id,
        # Pinned to the version: what is served is what was looked at, even if the alias moves in between.
        model_uri=f"models:/{REGISTERED_MODEL}/{version.version}",
        stage=run.data.tags.get("workshop.stage") if run else None,
        r2=float(tags[TAG + "r2"]) if TAG + "r2" in tags else None,
        since=tags.get(TAG + "when"),
        why=tags.get(TAG + "why"),
        run_url=run_url(version.run_id, run.info.experiment_id) if run else "",
    )


def judge(run_id: str, model_uri: str, held_out: pd.DataFrame, policy: Policy) -> tuple[Decision, Production | None]:
    """Score candidate and champion anew on the same held-out hours and decide; nothing is changed.

    A candidate that already is in production is refused as such. Raises ModelError when one cannot be loaded.
    """
    from workshop.models.loading import load

    champion = production()
    candidate_scores = score(held_out, load(model_uri).predict(held_out))
    if champion is not None and champion.run_id == run_id:
        decision = decide(candidate_scores, candidate_scores, policy)
        return Decision(False, "kept: it is in production already", decision.rules, *(candidate_scores,) * 2), champion
    champion_scores = score(held_out, load(champion.model_uri).predict(held_out)) if champion else None
    return decide(candidate_scores, champion_scores, policy), champion


def apply(decision: Decision, run_id: str, model_uri: str, replaced: Production | None, why: str) -> Production:
    """Register the candidate's model with the record of its promotion, then move the alias; return what now serves.

    The record is complete before the alias moves, so that nobody sees a version in production without one. Raises
    PromotionRefused when the decision does not allow it.
    """
    if not decision.promoted:
        raise PromotionRefused("The gate refused the candidate.", value=decision.reason, expected="every rule passed")
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(REGISTERED_MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    record = {
        "r2": f"{decision.candidate.r2:.6f}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": getpass.getuser(),
        "why": why,
        "reason": decision.reason,
        "replaced": replaced.version if replaced else "none",
        "replaced_r2": f"{decision.champion.r2:.6f}" if decision.champion else "none",
        "rules": json.dumps([asdict(rule) for rule in decision.rules]),
    }
    version = client.create_model_version(
        REGISTERED_MODEL,
        source=model_uri,
        run_id=run_id,
        model_id=model_uri.removeprefix("models:/"),
        tags={TAG + name: value for name, value in record.items()},
        description=decision.reason,
    )
    client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, version.version)
    now = production()
    if now is None:
        raise ModelError("The alias was set, but nothing is in production.", value=REGISTERED_MODEL)
    return now
