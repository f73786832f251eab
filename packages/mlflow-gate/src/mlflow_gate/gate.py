"""The gate: evaluate a candidate, compare it with the champion, and promote it if it passes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import loading, record
from mlflow_gate.comparison import MIN_BLOCKS, Comparison
from mlflow_gate.decision import BLOCKED, Decision, Evaluation, check_refit, decide, decide_on_champion, force, refuse
from mlflow_gate.errors import ConfigError, ModelError, ServerError
from mlflow_gate.keys import Keys, TrainingRows, hash_rows, training_rows
from mlflow_gate.lock import locked
from mlflow_gate.record import EvaluatedModel, Move, Production, Record
from mlflow_gate.registry import Registry
from mlflow_gate.rules import Finding, Rules, Scores, read_rules
from mlflow_gate.server import find, is_outage, outage

if TYPE_CHECKING:
    from mlflow.entities import Run

DESCRIPTION_CHARACTERS = 5000  # the limit of MLflow's database
HELD_OUT = {"hash": "held_out", "period": "period", "rows": "rows", "part": "part"}


class Gate:
    """The promotion gate of a registered model.

    Parameters
    ----------
    registry : Registry
        The registered model and its alias.
    evaluate : callable
        ``evaluate(model, held_out)`` returns `Scores`, within the registry's time limit.
    held_out : pandas object, sequence of keys, or callable
        The rows that models are evaluated on; the index of a pandas object holds each row's key.
    rules : mapping or callable, optional
        A `Rule` or its fields by metric, such as ``{"r2": {"min": 0.5}}``, or functions of `Scores` by name.
    comparison : Comparison or callable, optional
        How a candidate is compared with the champion; without one, only the rules decide.
    refit : callable, optional
        ``refit(run, model_uri)`` fits a candidate again, on all rows, once it has passed; it returns
        the refit's ``(run_id, model_uri)``, which is promoted instead, or None to keep the candidate.
    candidate : path, optional
        The file that `mlflow-gate promote` reads the candidate from.

    Raises
    ------
    ConfigError
        If a rule is invalid, or ``evaluate`` or ``refit`` is not callable.

    Notes
    -----
    ``held_out``, ``rules`` and ``comparison`` may be functions: they are called for each decision.

    >>> gate = Gate(Registry("doctest"), lambda model, rows: Scores({"accuracy": 0.9}), range(60))
    >>> gate.registry.history()
    []
    """

    def __init__(
        self,
        registry: Registry,
        evaluate: Callable[[Any, Any], Scores],
        held_out: Any,
        rules: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        comparison: Comparison | Callable[[], Comparison | None] | None = None,
        refit: Callable[[Run, str], tuple[str, str] | None] | None = None,
        *,
        candidate: Path | str | None = None,
    ) -> None:
        self.registry, self.candidate_file = registry, candidate
        self._score, self._held_out, self._refit = evaluate, held_out, refit
        if not callable(evaluate) or not (refit is None or callable(refit)):
            value = f"{evaluate!r:.100}, {refit!r:.100}"
            expected = "evaluate(model, held_out), and refit(run, model_uri) or None"
            raise ConfigError("`evaluate` or `refit` is not a function.", value=value, expected=expected)
        self._rules: Callable[[], Rules] = lambda: read_rules(rules() if callable(rules) else rules)
        is_function = callable(comparison) and not isinstance(comparison, type)
        self._comparison: Callable[[], Any] = comparison if is_function else lambda: comparison  # type: ignore[assignment]
        _ = callable(rules) or self._rules()  # report invalid rules now, not at the first decision

    def evaluate(self, run_id: str, model_uri: str | None = None) -> tuple[Decision, Production | None]:
        """Evaluate a run's model and return the decision and the champion, without promoting.

        If the alias was removed, the last version in the history is the champion. If the champion was trained on some
        held-out rows, both models are scored on the other rows, if these form six or more blocks. Raises ModelError if
        the run or model does not exist, ConfigError for invalid rules, ServerError if a model cannot be read.
        """
        return self._decide(self._find(run_id, model_uri, "candidate"))[:2]

    def promote(
        self, run_id: str, model_uri: str | None = None, *, dry_run: bool = False, force: bool = False, why: str = ""
    ) -> Decision:
        """Evaluate a run's model; if it passes, register it and move the alias to it.

        A model that was promoted before keeps its version. If the model in production changes meanwhile, the candidate
        is compared with the new one. ``force`` overrules the gate and requires ``why``. In a DVC experiment, the alias
        never moves. With ``refit``, the refitted model must pass the rules, too, and is registered instead.
        Raises the same errors as `evaluate`, and Conflict if another process moves the alias.
        """
        if force and not (why or "").strip():
            expected = 'force=True, why="..." (--force --why "...")'
            raise ConfigError("A forced promotion requires a reason.", expected=expected)
        experiment = os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV") or None
        candidate, registry = self._find(run_id, model_uri, "candidate"), self.registry
        refitted, refit_evaluation = None, None
        decision, champion, read = self._decide(candidate)
        final = self._finish(decision, champion, None, forced=force)
        if dry_run or experiment or not final.promoted or _is_live(candidate, champion):
            return replace(final, experiment=experiment)
        if self._refit and not registry.version_of(candidate.source, read, recorded=True):
            refitted = self._refit_model(candidate, self._refit)
            refit_evaluation = self._evaluation(refitted, None, *self._rows()) if refitted else None
            final = self._finish(decision, champion, refit_evaluation, forced=force)
            if not final.promoted:
                return final
        with contextlib.suppress(Exception):  # fails if the model exists; any other cause fails the next request, too
            registry.client.create_registered_model(registry.name)
        with locked(registry.client, registry.name) as check_lock:
            if not registry.record().is_unchanged_since(read):  # another process has moved the alias
                decision, champion, read = self._decide(candidate)
                if registry.version_of(candidate.source, read, recorded=True):  # it keeps that version
                    refitted, refit_evaluation = None, None
                final = self._finish(decision, champion, refit_evaluation, forced=force)
                if not final.promoted or _is_live(candidate, champion):
                    return final
            return replace(final, production=_fields(self._move(final, candidate, refitted, why, read, check_lock)))

    def _decide(self, candidate: EvaluatedModel) -> tuple[Decision, Production | None, Record]:
        held_out, keys = self._rows()
        read, rules, comparison = self.registry.record(), self._rules(), self._comparison()
        if not isinstance(comparison, Comparison | None):
            raise ConfigError(
                "`comparison` is not a Comparison.", value=repr(comparison)[:200], expected="Comparison(metric, ...)"
            )
        champion, client = self.registry.describe(read) if read.moves else None, self.registry.client
        rows, compared = training_rows(candidate.run_id, candidate.tags, client), None
        evaluation = self._evaluation(candidate, rows, held_out, keys)
        model = champion.evaluated if champion else None
        if champion and model and model.source == candidate.source:
            decision = decide_on_champion(evaluation, rules, comparison, has_alias=champion.has_alias)
        else:
            if model and comparison:
                other = training_rows(model.run_id, model.tags, client)
                if other and rows and "" != other.population != rows.population != "":
                    other = TrainingRows(keys.kinds, source=other.source)  # populations differ: no rows in common
                if other and rows and other.source != rows.source:
                    comparison = replace(comparison, max_gain=None)  # on different data, a large gain is plausible
                seen = other.find(keys)[0] if other else []
                if 0 < sum(seen) < len(seen):
                    rest = _drop(held_out, seen)
                    on_rest = self._evaluation(candidate, rows, rest, Keys.of(rest))
                    if on_rest.scores is None or len(on_rest.scores.blocks) >= MIN_BLOCKS:
                        evaluation = replace(on_rest, seen_rows=evaluation.seen_rows)
                        held_out, keys = rest, Keys.of(rest)
                compared = self._evaluation(model, other, held_out, keys)
                if compared.problem and compared.exists:  # try once more
                    compared = self._evaluation(model, other, held_out, keys)
            decision = decide(evaluation, compared or (Evaluation() if champion else None), rules, comparison)
            if rollback := record.blocking_rollback(candidate.source, read.moves):
                value = f"version {rollback.replaced}, on {rollback.when} by {rollback.who}: {rollback.why}"
                step = "promote another candidate, or overrule the gate with --force --why"
                finding = Finding(BLOCKED, value, "no rollback of this model", passed=False, next_step=step)
                decision = refuse(decision, finding)
        return replace(decision, run_id=candidate.run_id, model_uri=candidate.source), champion, read

    def _refit_model(self, candidate: EvaluatedModel, refit: Callable[[Any, str], Any]) -> EvaluatedModel | None:
        """Return the refitted candidate; None if ``refit`` returns None."""
        refitted = refit(candidate.run, candidate.source)
        if refitted is not None and [type(each) for each in refitted] != [str, str]:
            expected = "(run_id, model_uri), or None"
            raise ConfigError("`refit` returned an invalid value.", value=repr(refitted)[:200], expected=expected)
        return None if refitted is None else self._find(refitted[0], refitted[1], "refit")

    def _finish(
        self, decision: Decision, champion: Production | None, refit_evaluation: Evaluation | None, *, forced: bool
    ) -> Decision:
        """Return the final decision, after checking the refit and, if ``forced``, overruling the gate."""
        if refit_evaluation:
            decision = check_refit(decision, refit_evaluation, self._rules())
        live = champion if champion and champion.has_alias else None
        return replace(force(decision) if forced else decision, production=_fields(live))

    def _move(
        self,
        decision: Decision,
        candidate: EvaluatedModel,
        refitted: EvaluatedModel | None,
        why: str,
        read: Record,
        check_lock: Callable[[], None],
    ) -> Production:
        """Register the promoted model if it has no version, and move the alias; the caller holds the lock."""
        from mlflow.utils.git_utils import get_git_branch

        registry, scores, model = self.registry, decision.candidate, refitted or candidate
        registered = None if refitted else registry.version_of(candidate.source, read)
        version = registered or registry.client.create_model_version(
            registry.name,
            model.source,
            model.run_id,
            description=decision.reason[:DESCRIPTION_CHARACTERS],
            await_creation_for=0,  # do not wait: the version exists once the call returns
            model_id=model.source.removeprefix("models:/"),
        )
        run = model.run if version.run_id == model.run_id else registry.find_run(version.run_id)
        move = Move(
            0,
            record.FORCED if decision.forced else record.PROMOTED,
            str(version.version),
            reason=decision.reason,
            run_id=candidate.run_id,
            model_uri=candidate.source,
            scores=_rounded(scores),
            replaced_scores=_rounded(decision.champion),
            held_out={name: getattr(scores, field) for name, field in HELD_OUT.items()} if scores else {},
            metric=decision.metric,
            findings=decision.as_dict()["findings"],
            run=registry.kept_tags(run) | {"branch": get_git_branch(str(Path.cwd())) or ""},
            judged=registry.kept_tags(candidate.run),
            **record.provenance(why),
        )
        return registry.move(move, check_lock)

    def _find(self, run_id: str, model_uri: str | None, what: str) -> EvaluatedModel:
        """Return a model of the run, by default its only one (`runs:/RUN/NAME` works, too), or raise ModelError."""
        client = self.registry.client
        if (run := self.registry.find_run(run_id)) is None:
            step = "look for the run in MLflow; MLFLOW_TRACKING_URI selects the server"
            raise ModelError("The run does not exist.", value=run_id, next_step=step)
        logged = [f"models:/{output.model_id}" for output in (run.outputs.model_outputs if run.outputs else [])]
        matches = [model_uri] if model_uri else logged
        if model_uri and model_uri.startswith(f"runs:/{run_id}/"):
            name = model_uri.removeprefix(f"runs:/{run_id}/").strip("/")
            models = ((uri, find(client.get_logged_model, uri.removeprefix("models:/"))) for uri in logged)
            matches = [uri for uri, model in models if model and model.name == name]
        if len(matches) != 1 or matches[0] not in logged:
            is_unknown = model_uri and len(matches) < 2
            raise ModelError(
                f"The run did not log the {what}'s model." if is_unknown else f"Which model of the run is the {what}?",
                value=model_uri or f"the run logged {len(logged)} models",
                expected=f"a model of the run {run_id}: {', '.join(logged) or 'the run has none'}",
                next_step=None if logged else "log a model in the run: mlflow.<flavor>.log_model(model, name='model')",
            )
        return EvaluatedModel(run_id, matches[0], run.data.tags, matches[0], run)

    def _rows(self) -> tuple[Any, Keys]:
        """Return the held-out rows and their keys."""
        held_out = self._held_out() if callable(self._held_out) else self._held_out
        if hasattr(held_out, "__next__"):
            raise ConfigError("The held-out rows are an iterator.", expected="a pandas object, or a list of keys")
        if not (keys := Keys.of(held_out)).texts:
            raise ConfigError("There are no held-out rows.", expected="the rows that models are evaluated on")
        return held_out, keys

    def _evaluation(self, model: EvaluatedModel, rows: TrainingRows | None, held_out: Any, keys: Keys) -> Evaluation:
        """Load and score a model; if it cannot be loaded or cannot predict, the evaluation's `problem` says why."""
        registry, (seen, unknown) = self.registry, rows.find(keys) if rows else ([], "")
        run_id = model.run_id if model.run and model.run.info.lifecycle_stage == "active" else ""
        facts: dict[str, Any] = {"unknown": unknown, "are_renumbered": keys.are_renumbered, "run_id": run_id}
        evaluation = Evaluation(is_declared=bool(rows), seen_rows=sum(seen), **facts)
        try:
            scores = loading.call_within(registry.time_limit, self._score, registry.load(model.model_uri), held_out)
        except (ServerError, ConfigError):
            raise
        except Exception as error:
            if is_outage(error):
                raise outage(f"{model.model_uri} cannot be evaluated now: no decision was made", error) from error
            exists = not isinstance(error, loading.ModelMissing)
            return replace(evaluation, problem=loading.describe_error(error), exists=exists)
        if not isinstance(scores, Scores):
            raise ConfigError("`evaluate` did not return Scores.", value=repr(scores)[:200], expected="Scores(metrics)")
        period, count = scores.period or keys.period, len(held_out)
        return replace(
            evaluation, scores=replace(scores, held_out=hash_rows(held_out, keys), period=period, rows=count)
        )


def _is_live(candidate: EvaluatedModel, champion: Production | None) -> bool:
    """Return whether the candidate is already in production."""
    return champion is not None and champion.has_alias and champion.evaluated.source == candidate.source


def _drop(held_out: Any, seen: list[bool]) -> Any:
    """Return the held-out rows that the champion was not trained on."""
    if hasattr(held_out, "iloc"):
        return held_out[[not each for each in seen]]
    return [row for row, is_seen in zip(held_out, seen, strict=True) if not is_seen]


def _rounded(scores: Scores | None) -> dict[str, float]:
    return {name: round(value, 6) for name, value in scores.as_dict()["metrics"].items()} if scores else {}


def _fields(production: Production | None) -> dict[str, Any]:
    if production is None:
        return {}
    fields = {name: getattr(production, name) for name in ("name", "version", "run_id", "model_uri")}
    return fields | {"score": f"{production.move.label} {production.move.score}" if production.move.score else ""}
