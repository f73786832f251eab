"""The registered model: which version is in production, how another one gets there, and the record of each move.

A move of the alias `production` is recorded once, as a tag of the version that came into production. The record is
written before the alias moves and marked as done afterwards: when a process is killed in between, the alias still leads
to a version, and the move that did not happen is ignored.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import tenacity
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from workshop.data import split
from workshop.errors import ModelError, ParameterError, PromotionConflict, PromotionRefused
from workshop.models.gate import MIN_WEEKS, Decision, decide, hold, same_hours
from workshop.models.scores import METRICS, Scores
from workshop.models.store import connect
from workshop.models.tracking import (
    CODE_TAG,
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    EXPERIMENT_TAG,
    LEARNED_TAG,
    experiment,
    find_run,
    learned,
    learned_from,
    run_url,
)
from workshop.problem import REGISTERED_MODEL
from workshop.settings import PRODUCTION, STAGE_TAG, get_settings

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from workshop.parameters import Promote

MOVE_TAG = "workshop.move."
PROMOTED, FORCED, ROLLED_BACK, BY_HAND = "promoted", "forced", "rolled back", "by hand"
PIPELINE_WHY = "pipeline"  # the reason that the pipeline gives for a promotion; a person gives another
LOCK_SECONDS = 60.0
REASON_CHARACTERS = 10_000
DESCRIPTION_CHARACTERS = 5000  # the room that MLflow's database has


@dataclass(frozen=True)
class Move:
    """One move of the alias; ``action`` is `promoted`, `forced`, `rolled back`, or `by hand` for one without a record.

    ``number`` is its place in the history, ``when`` ISO 8601 in UTC. ``scores`` are those of the version that came,
    ``replaced_scores`` those of the version that went, on the same held-out hours; ``rules`` the gate's, each with
    name, value, limit and whether it passed; ``run`` the tags that say where the model comes from, in case its run is
    purged. ``recorded`` is false for a move that is seen, but not yet written down.
    """

    number: int
    action: str
    version: str
    when: str | None = None
    who: str | None = None
    why: str | None = None
    reason: str | None = None
    replaced: str | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    replaced_scores: dict[str, Any] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, str] = field(default_factory=dict)
    recorded: bool = True


@dataclass(frozen=True)
class Production:
    """The version that the alias `production` points at; ``since``, ``why`` and ``r2`` are those of its last move.

    ``learned_from`` is the source of the data that the model learned from, such as `modelled sample`, and
    ``learned_until`` the start of the last hour of it, in ISO 8601; None where neither run nor record says so.
    ``moves`` counts how often the version came into production.
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
    moves: int = 0


_MOVES = TypeAdapter(Move)


# -- what is in production ---------------------------------------------------------------------------------------------
def production(known: Production | None = None, client: MlflowClient | None = None) -> Production | None:
    """Return the model in production, or None when there is none.

    ``known`` is the last answer that the caller got: it is returned, after one request, if the alias has not moved.
    """
    client = client or connect()
    version = version_in_production(client)
    if version is None:
        return None
    number, moves = str(version.version), len(_records_of([version]))
    if known is not None and (known.version, known.run_id, known.moves) == (number, version.run_id, moves):
        return known
    run = find_run(client, version.run_id)
    last, tags = _complete(moves_of(_versions(client), number)[-1], run), tags_of(version, run)
    return Production(
        name=REGISTERED_MODEL,
        version=number,
        run_id=version.run_id or "",
        model_uri=uri_of(number),
        stage=tags.get(STAGE_TAG),
        r2=last.scores.get("r2"),
        since=last.when,
        why=last.why,
        run_url=run_url(run.info.run_id, run.info.experiment_id) if run else "",
        learned_from=learned_from(tags),
        learned_until=(learned(tags) or (None, None))[1],
        moves=moves,
    )


def version_in_production(client: MlflowClient) -> ModelVersion | None:
    """Return the version that carries the alias, with its tags; None when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(REGISTERED_MODEL, PRODUCTION)
    except MlflowException as error:
        # The second is what MLflow says of an alias that the model does not have.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def uri_of(version: str) -> str:
    """Return a version's address; unlike the alias, it always leads to the same model."""
    return f"models:/{REGISTERED_MODEL}/{version}"


def tags_of(version: ModelVersion, run: Run | None) -> dict[str, str]:
    """Return the tags of a version's run, and those that the record kept in case the run was purged."""
    kept = [move.run for _, move, _ in _records_of([version])]
    return (kept[-1] if kept else {}) | (run.data.tags if run else {})


# -- the record --------------------------------------------------------------------------------------------------------
def history(client: MlflowClient | None = None) -> list[Move]:
    """Return all moves of the alias, oldest first; empty when nothing was ever in production."""
    client = client or connect()
    versions = _versions(client)
    runs = {str(version.version): version.run_id for version in versions}
    moves = moves_of(versions, _current(client))
    return [move if move.scores else _complete(move, find_run(client, runs[move.version])) for move in moves]


def moves_of(versions: Iterable[ModelVersion], current: str | None) -> list[Move]:
    """Return the moves that happened, as the tags of all versions and the one in production, ``current``, show."""
    records = _records_of(versions)
    moves = [
        replace(move, recorded=done)
        for place, (_, move, done) in enumerate(records, start=1)
        if done or (place == len(records) and move.version == current)
    ]
    if current is not None and (not moves or moves[-1].version != current):
        replaced = moves[-1].version if moves else None
        moves.append(Move(0, BY_HAND, current, replaced=replaced, recorded=False))
    return [replace(move, number=number) for number, move in enumerate(moves, start=1)]


def note(client: MlflowClient | None = None) -> Move | None:
    """Record a move of the alias by hand, for example in the MLflow UI, so that a rollback can return to it.

    Return that move; None when there is none, or when it is recorded already.
    """
    client = client or connect()
    with _lock():
        return _record_manual_move(client)


def move_alias(client: MlflowClient, move: Move) -> None:
    """Record a move and make it; the caller holds the lock."""
    _record_manual_move(client)
    number = _next_number(client)
    _write(client, number, move, done=False)
    client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, move.version)
    _write(client, number, move, done=True)


def _current(client: MlflowClient) -> str | None:
    version = version_in_production(client)
    return str(version.version) if version else None


def _versions(client: MlflowClient) -> list[ModelVersion]:
    return client.search_model_versions(f"name='{REGISTERED_MODEL}'")


def _complete(move: Move, run: Run | None) -> Move:
    """Return a move with scores: a move by hand has only those that the version's run logged."""
    if move.scores:
        return move
    logged = run.data.metrics if run else {}
    scores = {name: round(logged[name], 6) for name in METRICS if math.isfinite(logged.get(name, math.nan))}
    return replace(move, scores=scores)


def _record_manual_move(client: MlflowClient) -> Move | None:
    last = next(reversed(moves_of(_versions(client), _current(client))), None)
    if last is None or last.recorded:
        return None
    _write(client, _next_number(client), last, done=True)
    return last


def _records_of(versions: Iterable[ModelVersion]) -> list[tuple[int, Move, bool]]:
    """Return the records in the tags of versions, in order: number, move, and whether it is done."""
    records = []
    for version in versions:
        for name, text in version.tags.items():
            # Anybody who reaches the tracking server can write tags: others than ours are ignored.
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                content = json.loads(text) if _number(name) else {}
                done = content.pop("done") is True
                identity = {"number": _number(name), "version": str(version.version)}
                records.append((_number(name), _MOVES.validate_python(content | identity), done))
    return sorted(records, key=lambda record: record[0])


def _number(tag: str) -> int:
    """Return the number in the name of a move's tag; 0 for other tags."""
    numbered = re.fullmatch(rf"{re.escape(MOVE_TAG)}(\d{{6}})", tag)
    return int(numbered[1]) if numbered else 0


def _next_number(client: MlflowClient) -> int:
    return 1 + max((_number(tag) for version in _versions(client) for tag in version.tags), default=0)


def _write(client: MlflowClient, number: int, move: Move, *, done: bool) -> None:
    content = asdict(move) | {"done": done}
    for name in ("number", "version", "recorded"):
        del content[name]
    text = json.dumps(content, ensure_ascii=False)
    client.set_model_version_tag(REGISTERED_MODEL, move.version, f"{MOVE_TAG}{number:06d}", text)


# -- the gate ----------------------------------------------------------------------------------------------------------
def evaluate_candidate(
    run_id: str, model_uri: str, held_out: pd.DataFrame, policy: Promote, client: MlflowClient | None = None
) -> tuple[Decision, Production | None]:
    """Score candidate and champion on the same held-out hours and decide; return the champion, too. Nothing is changed.

    If the champion learned from some of ``held_out``, both are scored on the hours after those, as long as these fill
    six weeks. A candidate that is in production already is refused as such. In an experiment of DVC no candidate is
    promoted (`gate.hold`). Raises ModelError when the model was logged by another run: the tags of its own run say what
    the model learned from.
    """
    from workshop.models.evaluation import evaluate  # imports scikit-learn

    client = client or connect()
    _check_made_by(client, run_id, model_uri)
    champion = production(client=client)
    run = find_run(client, run_id)
    tags = run.data.tags if run else {}
    if champion is None or champion.run_id == run_id:
        decision = decide(evaluate(model_uri, tags, held_out, client), None, policy)
        if champion is not None:
            reason = "kept: it is in production already"
            decision = replace(decision, promoted=False, reason=reason, champion=decision.candidate)
        return hold(decision, experiment()), champion
    version = client.get_model_version(REGISTERED_MODEL, champion.version)
    its_tags = tags_of(version, find_run(client, version.run_id))
    if same_hours(learned_from(tags), learned_from(its_tags)):
        later = split.unlearned(held_out, learned(its_tags))
        weeks = split.week_means(later.index.to_series(), later["utc_timestamp"])
        held_out = later if len(weeks) >= MIN_WEEKS else held_out
    candidate = evaluate(model_uri, tags, held_out, client)
    decision = decide(candidate, evaluate(champion.model_uri, its_tags, held_out, client), policy)
    return hold(decision, experiment()), champion


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(PromotionConflict), stop=tenacity.stop_after_attempt(5), reraise=True
)
def promote(run_id: str, model_uri: str, held_out: pd.DataFrame, policy: Promote) -> tuple[Decision, Production | None]:
    """Put the pipeline's candidate before the gate, and promote it if it passes.

    Returns the decision, and what is in production.

    When the model in production changes meanwhile, the candidate is compared with the new one. Errors as of
    `evaluate_candidate`.
    """
    client = connect()
    decision, champion = evaluate_candidate(run_id, model_uri, held_out, policy, client)
    if not decision.promoted:
        return decision, champion
    return decision, apply(decision, run_id, model_uri, champion, PIPELINE_WHY, client)


def apply(
    decision: Decision,
    run_id: str,
    model_uri: str,
    replaced: Production | None,
    why: str,
    client: MlflowClient | None = None,
) -> Production:
    """Register the candidate's model and move the alias to it; return what is now in production.

    Raises PromotionRefused when the decision does not allow it, PromotionConflict when ``replaced`` is not in
    production any more: the candidate was compared with that version.
    """
    if not decision.promoted:
        raise PromotionRefused("The gate refused the candidate.", value=decision.reason, expected="every rule passed")
    client = client or connect()
    from mlflow.exceptions import MlflowException

    signed, run = _provenance(why), find_run(client, run_id)
    with _lock():
        _check_unchanged(client, replaced)
        with contextlib.suppress(MlflowException):  # it exists already; if not, the next step says so
            client.create_registered_model(REGISTERED_MODEL)
        version = client.create_model_version(
            REGISTERED_MODEL,
            source=model_uri,
            run_id=run_id,
            model_id=model_uri.removeprefix("models:/"),
            description=decision.reason[:DESCRIPTION_CHARACTERS],
            await_creation_for=0,  # it exists when the server has answered
        )
        move = Move(
            number=0,
            action=FORCED if decision.forced else PROMOTED,
            version=str(version.version),
            **signed,
            reason=decision.reason,
            replaced=replaced.version if replaced else None,
            scores=_figures(decision.candidate),
            replaced_scores=_figures(decision.champion),
            rules=decision.as_dict()["rules"],
            run={name: value for name, value in (run.data.tags if run else {}).items() if _is_lineage(name)},
        )
        move_alias(client, move)
        return production(client=client)  # type: ignore[return-value] # the alias was just set


def rollback(to: str | None = None, why: str = "", client: MlflowClient | None = None) -> Production:
    """Bring back what was in production before, or the version ``to``; return what is now in production.

    Each rollback goes one step further back (`promoted_versions`). Raises ModelError when there is no such version, it
    never was in production, or it cannot be loaded; PromotionConflict when the alias moves meanwhile.
    """
    from workshop.models import storage  # imports scikit-learn

    client, signed = client or connect(), _provenance(why)
    before = production(client=client)
    target = _target(to, history(client), before.version if before else None)
    storage.load(uri_of(target), client)  # may take minutes, so before the lock
    with _lock():
        _check_unchanged(client, before)
        moves, current = history(client), _current(client)
        last = {move.version: move for move in moves}  # the last move that brought each version
        move = Move(
            number=0,
            action=ROLLED_BACK,
            version=target,
            **signed,
            reason=f"rolled back{f' from version {current}' if current else ''} to version {target}",
            replaced=current,
            scores=last[target].scores,
            replaced_scores=last[current].scores if current else {},
            run=last[target].run,
        )
        move_alias(client, move)
        return production(client=client)  # type: ignore[return-value] # the alias was just set


def promoted_versions(moves: list[Move]) -> list[str]:
    """Return the versions that led to the one in production, which is the last, without those rolled back from."""
    line: list[str] = []
    for move in moves:
        if move.action == ROLLED_BACK and move.version in line:
            while line[-1] != move.version:
                line.pop()
        elif line[-1:] != [move.version]:
            line.append(move.version)
    return line


def _target(to: str | None, moves: list[Move], current: str | None) -> str:
    """Return the version to go back to; raise ModelError, which names those that are possible."""
    possible = sorted({move.version for move in moves} - {current}, key=int)
    if not moves:
        raise ModelError("Nothing was ever in production.", next_step="workshop promote")
    line = promoted_versions(moves)
    version = to if to is not None else line[-1] if current is None else (None, *line)[-2]
    if version in possible:
        return version
    if version is None:
        what = f"Nothing was in production before version {current}."
    elif version == current:
        what = f"Version {version} is in production already."
    else:
        what = f"Version {version} was never in production, or was deleted: it has to pass the gate."
    raise ModelError(
        what,
        expected=f"one of the versions {', '.join(possible)}" if possible else "a version in production before it",
        next_step=f"workshop rollback --to {possible[-1]}" if possible else "workshop promote",
    )


def _check_made_by(client: MlflowClient, run_id: str, model_uri: str) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # the gate refuses a model that does not exist
        logged = client.get_logged_model(model_uri.removeprefix("models:/"))
        if logged.source_run_id != run_id:
            raise ModelError(
                "The candidate's model was logged by another run.",
                value=f"{model_uri} of the run {logged.source_run_id}",
                expected=f"a model of the run {run_id}",
                next_step="cd 4_pipeline && dvc repro",
            )


def _check_unchanged(client: MlflowClient, expected: Production | None) -> None:
    """Raise PromotionConflict unless the alias is where it was when the decision was made."""
    now = production(client=client)
    before, after = (each.version if each else None for each in (expected, now))
    if before != after:
        raise PromotionConflict(
            "The model in production has changed since the decision.",
            value=f"version {after}, since {now.since or 'a moment ago'}" if now else "nothing",
            expected=f"version {before}, as before" if before else "nothing, as before",
            next_step="workshop history; then try again: workshop promote compares with the new version",
        )


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Let one process of this machine move the alias at a time."""
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


def _provenance(why: str) -> dict[str, Any]:
    """Return when, by whom and why; raise ParameterError for a reason that is too long."""
    if len(why) > REASON_CHARACTERS:
        value, expected = f"{len(why)} characters", f"at most {REASON_CHARACTERS}"
        raise ParameterError("The reason is too long.", value=value, expected=expected)
    why = why.encode(errors="replace").decode()  # bytes of the command line that are no text cannot be sent
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": getpass.getuser(), "why": why}


def _figures(scores: Scores | None) -> dict[str, Any]:
    """Return the scores as the record has them; NaN and infinity are left out."""
    if scores is None:
        return {}
    kept = {name: round(value, 6) for name, value in scores.metrics().items() if math.isfinite(value)}
    return kept | {"hours": scores.hours, "period": list(scores.period or ())}


def _is_lineage(tag: str) -> bool:
    return tag.startswith((DATA_TAG, LEARNED_TAG, STAGE_TAG, CODE_TAG, COMMIT_TAG, DIRTY_TAG, EXPERIMENT_TAG))
