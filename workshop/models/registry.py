"""The registered model: which version is in production, and how another comes to be."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from workshop.data.coverage import STAMP
from workshop.data.origin import Origin
from workshop.errors import ModelError, ParameterError, PromotionConflict, PromotionRefused
from workshop.models import history
from workshop.models.history import FORCED, PROMOTED, ROLLED_BACK, Move
from workshop.models.promotion import Decision, Policy, Scores, decide
from workshop.models.tracking import (
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    LEARNED_TAG,
    STAGE_TAG,
    connect,
    find_run,
    run_url,
)
from workshop.settings import PRODUCTION, REGISTERED_MODEL, get_settings

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TAG = "workshop.promotion."
LOCK_SECONDS = 60.0
MOST_CHARACTERS = 100_000  # of a version's tag, in MLflow


@dataclass(frozen=True)
class Production:
    """The version that the alias `production` points at; ``since``, ``why`` and ``r2`` are those of its last move.

    ``learned_from`` is the source of the data that it learned from, such as `modelled sample`, and ``learned_until``
    the start of the last hour of it, as ISO 8601 has it; None where neither run nor record says so.
    """

    name: str
    version: str
    run_id: str
    model_uri: str
    stage: str | None
    r2: float | None
    since: str | None
    why: str | None
    run_url: str
    learned_from: str | None = None
    learned_until: str | None = None

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return asdict(self)


def production(known: Production | None = None) -> Production | None:
    """Return what is in production, or None when nothing is.

    Who asks again and again gives what is ``known``: it is returned, after one request, if the alias has not moved.
    """
    client = connect()
    model = history.find_model(client)
    number = history.version_of(model) if model else None
    if number is None:
        return None
    move = history.moves_of(model)[-1]
    if known is not None and move.when is not None and (known.version, known.since) == (number, move.when):
        return known
    version = client.get_model_version(REGISTERED_MODEL, number)
    run = find_run(client, version.run_id)
    tags = recorded(version) | (run.data.tags if run else {})
    scores = move.scores or history.metrics_of(run)
    return Production(
        name=REGISTERED_MODEL,
        version=number,
        run_id=version.run_id,
        model_uri=uri_of(number),
        stage=tags.get(STAGE_TAG),
        r2=scores.get("r2"),
        since=move.when,
        why=move.why,
        run_url=run_url(version.run_id, run.info.experiment_id) if run else "",
        learned_from=learned_from(tags),
        learned_until=(learned(tags) or (None, None))[1],
    )


def uri_of(version: str) -> str:
    """Return a version's address: what is served is what was looked at, even if the alias moves in between."""
    return f"models:/{REGISTERED_MODEL}/{version}"


def recorded(version: ModelVersion) -> dict[str, str]:
    """Return the tags of its run that a version keeps in the record of its promotion; none where that is not ours."""
    try:
        told = json.loads(version.tags.get(TAG + "run", "{}"))
    except (ValueError, RecursionError):
        return {}
    return {name: value for name, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}


def tags_of(production: Production) -> dict[str, str]:
    """Return the tags of a version's run; where it was purged, those that the record kept."""
    client = connect()
    version = client.get_model_version(REGISTERED_MODEL, production.version)
    return recorded(version) | _tags_of_run(client, version.run_id)


def learned(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the first and the last hour that a run's model learned from, if its tags say so; `STAMP` is their form."""
    first, last = (tags.get(LEARNED_TAG + end, "") for end in ("first", "last"))
    try:
        # Read and written again: strptime takes other forms, too, and those would not sort as text.
        known = all(datetime.strptime(end, STAMP).strftime(STAMP) == end for end in (first, last))  # noqa: DTZ007
    except ValueError:
        return None
    return (first, last) if known and first <= last else None


def learned_hash(tags: Mapping[str, str]) -> str | None:
    """Return the hash of the table that a run's model learned from, if its tags say so."""
    return tags.get(DATA_TAG + tags.get(LEARNED_TAG + "table", ""))


def learned_from(tags: Mapping[str, str]) -> str | None:
    """Return what the source of a run's data is called, if its tags say so: `modelled sample`, `opsd`, `csv`."""
    source, modelled = (tags.get(LEARNED_TAG + name) for name in ("source", "modelled"))
    return Origin(source=source, modelled=modelled == "true").label if source else None


def judge(run_id: str, model_uri: str, held_out: pd.DataFrame, policy: Policy) -> tuple[Decision, Production | None]:
    """Score candidate and champion anew on the same held-out hours and decide; nothing is changed.

    A candidate that already is in production is refused as such. The champion is returned, too. Raises ModelError when
    the model was logged by another run, whose tags alone tell what it learned from.
    """
    from workshop.models.evaluation import evaluate

    client = connect()
    _check_made_by(client, run_id, model_uri)
    champion = production()
    candidate = evaluate(model_uri, _tags_of_run(client, run_id), held_out)
    if champion is not None and champion.run_id == run_id:
        rules = decide(candidate, None, policy).rules
        kept = Decision(False, "kept: it is in production already", rules, candidate.scores, candidate.scores)
        return replace(kept, learned_from=candidate.learned_from), champion
    defender = None
    if champion is not None:
        defender = evaluate(champion.model_uri, tags_of(champion), held_out)
    return decide(candidate, defender, policy), champion


def _check_made_by(client: MlflowClient, run_id: str, model_uri: str) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # of a model that is not there the gate says so
        logged = client.get_logged_model(model_uri.removeprefix("models:/"))
        if logged.source_run_id != run_id:
            raise ModelError(
                "The candidate's model was logged by another run.",
                value=f"{model_uri} of the run {logged.source_run_id}",
                expected=f"a model of the run {run_id}",
                next_step="cd 4_pipeline && dvc repro",
            )


def force(decision: Decision) -> Decision:
    """Return the decision of a person who overrules the gate; its reason and its rules go on saying what it found."""
    if decision.promoted or decision.candidate is None:
        return decision
    reason = f"forced against the gate, which said: {decision.reason}"
    return replace(decision, promoted=True, reason=reason, forced=True)


def apply(decision: Decision, run_id: str, model_uri: str, replaced: Production | None, why: str) -> Production:
    """Register the candidate's model with the record of its promotion, then move the alias; return what now serves.

    The record is complete before the alias moves, so that nobody sees a version in production without one. Raises
    PromotionRefused when the decision does not allow it, PromotionConflict when ``replaced`` is not in production any
    more: somebody else was first, and it was not that version that the candidate was held against.
    """
    if not decision.promoted:
        raise PromotionRefused("The gate refused the candidate.", value=decision.reason, expected="every rule passed")
    client = connect()
    from mlflow.exceptions import MlflowException

    with _lock():
        _check_unchanged(replaced)
        with contextlib.suppress(MlflowException):  # it is there already; if not, the next step says so
            client.create_registered_model(REGISTERED_MODEL)
        tags = _tags_of_run(client, run_id)
        move = Move(
            number=0,
            action=FORCED if decision.forced else PROMOTED,
            version="",
            **_signed(why),
            reason=decision.reason,
            replaced=replaced.version if replaced else None,
            scores=_figures(decision.candidate),
            replaced_scores=_figures(decision.champion),
            rules=decision.as_dict()["rules"],
            data=learned_hash(tags),
            commit=tags.get(COMMIT_TAG),
        )
        version = client.create_model_version(
            REGISTERED_MODEL,
            source=model_uri,
            run_id=run_id,
            model_id=model_uri.removeprefix("models:/"),
            tags=_record(move, tags),
            description=decision.reason[: history.MOST_CHARACTERS],  # the database has as much room for either
            await_creation_for=0,  # it is there when the server has answered
        )
        return _move(client, move, str(version.version))


def rollback(to: str | None = None, why: str = "") -> Production:
    """Bring back what was in production before, or the version ``to``; return what now serves.

    Each goes one step further back (`history.line_of`). Raises ModelError when there is no such version, it never was
    in production, is deleted, or cannot be loaded.
    """
    from workshop.models import loading

    client = connect()
    with _lock():
        moves = history.read()
        served = {move.version: move for move in moves}  # the last move of each that brought it
        current = production()
        target = _target(to, moves, current)
        loading.load(uri_of(target))
        earlier = served[target]
        move = Move(
            number=0,
            action=ROLLED_BACK,
            version="",
            **_signed(why),
            reason=f"rolled back{f' from version {current.version}' if current else ''} to version {target}",
            replaced=current.version if current else None,
            scores=earlier.scores,
            replaced_scores=served[current.version].scores if current and current.version in served else {},
            data=earlier.data,
            commit=earlier.commit,
        )
        return _move(client, move, target)


def note() -> Move | None:
    """Write down that the alias was moved by hand, in the MLflow UI say, so that a rollback can go back to it.

    Return that move; None when there is none, or it was noted before.
    """
    with _lock():
        return history.note(connect())


def _target(to: str | None, moves: list[Move], current: Production | None) -> str:
    """Return the version to go back to; raise ModelError, which names those that are possible."""
    now = current.version if current else None
    possible = sorted({move.version for move in moves if not move.deleted and move.version != now}, key=int)
    if not moves:
        raise ModelError("Nothing was ever in production.", next_step="workshop promote")
    line = history.line_of(moves)
    wanted = to if to is not None else line[-1] if now is None else (None, *line)[-2]
    if wanted in possible:
        return wanted
    deleted = any(move.version == wanted and move.deleted for move in moves)
    if wanted is None:
        what = f"Nothing was in production before version {now}."
    elif wanted == now:
        what = f"Version {wanted} is in production already."
    elif deleted:
        what = f"Version {wanted} was deleted, and cannot come back."
    else:
        what = f"Version {wanted} never was in production: it has to pass the gate."
    raise ModelError(
        what,
        expected=f"one of the versions {', '.join(possible)}" if possible else "no other version has served",
        next_step=f"workshop rollback --to {possible[-1]}" if possible else "workshop promote",
    )


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Let one process of this machine move the alias at a time."""
    from filelock import FileLock, Timeout

    state = get_settings().state
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / "promotion.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise PromotionConflict(
            "Another promotion or rollback is under way.",
            value=f"it has taken more than {LOCK_SECONDS:g} s",
            next_step="workshop history, and try again",
        ) from None


def _check_unchanged(expected: Production | None) -> None:
    """Raise PromotionConflict unless the alias is where it was when the decision was made."""
    now = production()
    before, after = (each.version if each else None for each in (expected, now))
    if before != after:
        raise PromotionConflict(
            "Somebody else was first: what is in production has changed since the decision.",
            value=f"version {after}, since {now.since or 'a moment ago'}" if now else "nothing",
            expected=f"version {before}, which the candidate was held against" if before else "nothing",
            next_step="workshop promote, to be held against what is in production now",
        )


def _move(client: MlflowClient, move: Move, version: str) -> Production:
    history.move_alias(client, replace(move, version=version))
    now = production()
    if now is None:
        raise ModelError("The alias was set, but nothing is in production.", value=f"{REGISTERED_MODEL}@{PRODUCTION}")
    return now


def _signed(why: str) -> dict[str, str]:
    if len(why) > MOST_CHARACTERS:
        raise ParameterError(
            "The reason is too long.", value=f"{len(why)} characters", expected=f"at most {MOST_CHARACTERS}"
        )
    why = why.encode(errors="replace").decode()  # bytes of the command line that are no text cannot be sent
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": getpass.getuser(), "why": why}


def _figures(scores: Scores | None) -> dict:
    """Return the scores as the record has them; those that are no number are left out."""
    if scores is None:
        return {}
    kept = {name: round(value, 6) for name, value in scores.metrics().items() if math.isfinite(value)}
    return kept | {"hours": scores.hours, "period": list(scores.period or ())}


def _record(move: Move, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version that tell of its promotion; ``tags`` are those of its run."""
    lineage = {name: value for name, value in tags.items() if name.startswith((DATA_TAG, LEARNED_TAG))}
    lineage |= {name: tags[name] for name in (STAGE_TAG, COMMIT_TAG, DIRTY_TAG) if name in tags}
    told = {
        "action": move.action,
        "when": move.when,
        "who": move.who,
        "why": move.why,
        "reason": move.reason,
        "replaced": move.replaced or "none",
        "r2": str(move.scores.get("r2")),
        "replaced_r2": str(move.replaced_scores.get("r2", "none")),
        "scores": json.dumps(move.scores),
        "replaced_scores": json.dumps(move.replaced_scores),
        "rules": json.dumps(move.rules),
        "data": move.data or "unknown",
        "learned_from": learned_from(tags) or "unknown",
        "commit": move.commit or "unknown",
        "run": json.dumps(lineage),
    }
    return {TAG + name: str(value) for name, value in told.items()}


def _tags_of_run(client: MlflowClient, run_id: str) -> dict[str, str]:
    run = find_run(client, run_id)
    return run.data.tags if run else {}
