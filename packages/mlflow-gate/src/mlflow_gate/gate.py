"""The gate before the alias: a candidate is evaluated, compared with the champion, and promoted if it passes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import record, trial
from mlflow_gate.contest import LEAST_BLOCKS, Contest
from mlflow_gate.decision import BLOCKED, Decision, Evaluation, check_refit, decide, force, in_production, refuse
from mlflow_gate.errors import ConfigError, ModelError, ServerError
from mlflow_gate.keys import Keys, TrainingRows, hash_of, training_rows
from mlflow_gate.record import EvaluatedModel, Move, Production, Record
from mlflow_gate.registry import Registry
from mlflow_gate.rules import Finding, Rules, Scores, read_rules
from mlflow_gate.server import find, is_outage, outage
from mlflow_gate.turns import turn

if TYPE_CHECKING:
    from mlflow.entities import Run

DESCRIPTION_CHARACTERS = 5000  # the room that MLflow's database has
HELD_OUT = {"hash": "held_out", "period": "period", "rows": "rows", "part": "part"}


class Gate:
    """The gate before the alias of a registry.

    ``evaluate(model, held_out)`` returns `Scores`, within the time limit of the registry. ``held_out`` is the data that
    models are evaluated on: a pandas object whose index holds the key of each row, or a sequence of keys. ``rules`` are
    a `Rule`, its fields or a function for each metric (``{"r2": {"min": 0.5}}``). Data, rules and ``contest`` may each
    be a function that returns it, which is called for each decision. ``refit(run, model_uri)`` fits a candidate that
    passed again, on all rows, and returns run and model of that fit, which goes into production in its place; None to
    leave it. ``candidate`` is the file that names a candidate for `mlflow-gate promote`.

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
        contest: Contest | Callable[[], Contest | None] | None = None,
        refit: Callable[[Run, str], tuple[str, str] | None] | None = None,
        *,
        candidate: Path | str | None = None,
    ) -> None:
        self.registry, self.candidate_file = registry, candidate
        self._evaluate, self._held_out, self._refit = evaluate, held_out, refit
        if not callable(evaluate) or not (refit is None or callable(refit)):
            value = f"{evaluate!r:.100}, {refit!r:.100}"
            expected = "evaluate(model, held_out), and refit(run, model_uri) or None"
            raise ConfigError("`evaluate` or `refit` is no function.", value=value, expected=expected)
        self._rules: Callable[[], Rules] = lambda: read_rules(rules() if callable(rules) else rules)
        is_function = callable(contest) and not isinstance(contest, type)
        self._contest: Callable[[], Any] = contest if is_function else lambda: contest  # type: ignore[assignment]
        _ = callable(rules) or self._rules()  # a mistake is an error at once

    def judge(self, run_id: str, model_uri: str | None = None) -> tuple[Decision, Production | None]:
        """Evaluate the model of a run; return the decision, and the champion. Nothing changes.

        Without the alias the last version of the record is the champion. If it learned from some of the held-out rows,
        both are scored on the other ones, as long as these fill six blocks. Raises ModelError when there is no such run
        or model, ConfigError for rules that cannot be applied, ServerError when a model cannot be read now.
        """
        return self._judge(self._find(run_id, model_uri, "candidate"))[:2]

    def promote(
        self, run_id: str, model_uri: str | None = None, *, dry_run: bool = False, force: bool = False, why: str = ""
    ) -> Decision:
        """Evaluate the model of a run; register it and move the alias to it when it passes.

        A model that was promoted before keeps its version. When the model in production changes meanwhile, the
        candidate is compared with the new one. With ``force`` a person overrules the gate, which needs ``why``. In an
        experiment of DVC nothing moves. What goes into production is the refit of the candidate, if there is one; it
        has to pass the rules, too. Errors are those of `judge`; also Conflict.
        """
        if force and not (why or "").strip():
            expected = 'force=True, why="..." (--force --why "...")'
            raise ConfigError("A forced promotion needs a reason.", expected=expected)
        experiment = os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV") or None
        candidate, registry = self._find(run_id, model_uri, "candidate"), self.registry
        refitted, on_refit = None, None
        decision, champion, read = self._judge(candidate)
        final = self._finish(decision, champion, None, forced=force)
        if dry_run or experiment or not final.promoted or _is_live(candidate, champion):
            return replace(final, experiment=experiment)
        if self._refit and not registry.version_of(candidate.source, recorded=True):
            refitted = self._fit_again(candidate, self._refit)
            on_refit = self._evaluation(refitted, None, *self._rows()) if refitted else None
            final = self._finish(decision, champion, on_refit, forced=force)
            if not final.promoted:
                return final
        with contextlib.suppress(Exception):  # it exists already; if not, the next step says so
            registry.client.create_registered_model(registry.name)
        with turn(registry.client, registry.name) as keep:
            if not registry.record().is_as(read):  # another process was faster
                decision, champion, _ = self._judge(candidate)
                final = self._finish(decision, champion, on_refit, forced=force)
                if not final.promoted or _is_live(candidate, champion):
                    return final
            return replace(final, production=_fields(self._move(final, candidate, refitted, why, keep)))

    def _judge(self, candidate: EvaluatedModel) -> tuple[Decision, Production | None, Record]:
        held_out, keys = self._rows()
        read, rules, contest = self.registry.record(), self._rules(), self._contest()
        if not isinstance(contest, Contest | None):
            raise ConfigError("The contest is no Contest.", value=repr(contest)[:200], expected="Contest(metric, ...)")
        champion, client = self.registry.describe(read) if read.moves else None, self.registry.client
        rows, compared = training_rows(candidate.run_id, candidate.tags, client), None
        evaluation = self._evaluation(candidate, rows, held_out, keys)
        model = champion.evaluated if champion else None
        if champion and model and model.source == candidate.source:
            decision = in_production(evaluation, rules, contest, has_alias=champion.has_alias)
        else:
            if model and contest:
                other = training_rows(model.run_id, model.tags, client)
                if other and rows and "" != other.population != rows.population != "":
                    other = TrainingRows(keys.kinds, source=other.source)  # whatever the keys, these are not the rows
                if other and rows and other.source != rows.source:
                    contest = replace(contest, max_gain=None)  # a model of other data does not say what can be trusted
                known = other.find(keys)[0] if other else []
                if 0 < sum(known) < len(known):
                    rest = _select(held_out, known)
                    on_rest = self._evaluation(candidate, rows, rest, Keys.of(rest))
                    if on_rest.scores is None or len(on_rest.scores.blocks) >= LEAST_BLOCKS:
                        evaluation = replace(on_rest, learned_rows=evaluation.learned_rows)
                        held_out, keys = rest, Keys.of(rest)
                compared = self._evaluation(model, other, held_out, keys)
                if compared.trouble and compared.is_there:  # what fails once may be chance
                    compared = self._evaluation(model, other, held_out, keys)
            decision = decide(evaluation, compared or (Evaluation() if champion else None), rules, contest)
            if rollback := record.blocking_rollback(candidate.source, read.moves):
                value = f"version {rollback.replaced} was, on {rollback.when} by {rollback.who}: {rollback.why}"
                step = "send another candidate, or overrule the rollback with --force --why"
                finding = Finding(BLOCKED, value, "not rolled back from", passed=False, next_step=step)
                decision = refuse(decision, finding)
        return replace(decision, run_id=candidate.run_id, model_uri=candidate.source), champion, read

    def _fit_again(self, candidate: EvaluatedModel, refit: Callable[[Any, str], Any]) -> EvaluatedModel | None:
        """Return the model that ``refit`` makes of a candidate; None where it leaves the candidate as it is."""
        made = refit(candidate.run, candidate.source)
        if made is not None and [type(each) for each in made] != [str, str]:
            expected = "(run_id, model_uri), or None"
            raise ConfigError("`refit` returned no model.", value=repr(made)[:200], expected=expected)
        return None if made is None else self._find(made[0], made[1], "refit")

    def _finish(
        self, decision: Decision, champion: Production | None, on_refit: Evaluation | None, *, forced: bool
    ) -> Decision:
        """Return the decision with what the refit and a person who forces it make of it."""
        if on_refit:
            decision = check_refit(decision, on_refit, self._rules())
        live = champion if champion and champion.has_alias else None
        return replace(force(decision) if forced else decision, production=_fields(live))

    def _move(
        self,
        decision: Decision,
        candidate: EvaluatedModel,
        refitted: EvaluatedModel | None,
        why: str,
        keep: Callable[[], None],
    ) -> Production:
        """Register what was decided, unless it has a version, and move the alias to it; the caller has the turn."""
        from mlflow.utils.git_utils import get_git_branch

        registry, scores, model = self.registry, decision.candidate, refitted or candidate
        known = None if refitted else registry.version_of(candidate.source)
        version = known or registry.client.create_model_version(
            registry.name,
            model.source,
            model.run_id,
            description=decision.reason[:DESCRIPTION_CHARACTERS],
            await_creation_for=0,  # it exists after the answer
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
        return registry.move(move, keep)

    def _find(self, run_id: str, model_uri: str | None, what: str) -> EvaluatedModel:
        """Return the model that a run logged, also by `runs:/RUN/NAME`; raise ModelError for another run's model."""
        client = self.registry.client
        if (run := self.registry.find_run(run_id)) is None:
            step = "look for it in MLflow; MLFLOW_TRACKING_URI names the server"
            raise ModelError("There is no such run.", value=run_id, next_step=step)
        logged = [f"models:/{output.model_id}" for output in (run.outputs.model_outputs if run.outputs else [])]
        named = [model_uri] if model_uri else logged
        if model_uri and model_uri.startswith(f"runs:/{run_id}/"):
            name = model_uri.removeprefix(f"runs:/{run_id}/").strip("/")
            models = ((uri, find(client.get_logged_model, uri.removeprefix("models:/"))) for uri in logged)
            named = [uri for uri, model in models if model and model.name == name]
        if len(named) != 1 or named[0] not in logged:
            is_unknown = model_uri and len(named) < 2
            raise ModelError(
                f"The {what}'s model is none of its run." if is_unknown else f"Which model of the run is the {what}?",
                value=model_uri or f"the run logged {len(logged)}",
                expected=f"a model of the run {run_id}: {', '.join(logged) or 'it has none'}",
                next_step=None if logged else "log one in the run: mlflow.<flavor>.log_model(model, name='model')",
            )
        return EvaluatedModel(run_id, named[0], run.data.tags, named[0], run)

    def _rows(self) -> tuple[Any, Keys]:
        """Return the data that models are evaluated on, and its keys."""
        held_out = self._held_out() if callable(self._held_out) else self._held_out
        if hasattr(held_out, "__next__"):
            raise ConfigError("The held-out rows can be read only once.", expected="a pandas object, or a list of keys")
        if not (keys := Keys.of(held_out)).texts:
            raise ConfigError("There are no held-out rows.", expected="the rows that models are evaluated on")
        return held_out, keys

    def _evaluation(self, model: EvaluatedModel, rows: TrainingRows | None, held_out: Any, keys: Keys) -> Evaluation:
        """Load and score a model; one that cannot be loaded or cannot predict has a `trouble`."""
        registry, (known, unknown) = self.registry, rows.find(keys) if rows else ([], "")
        run_id = model.run_id if model.run and model.run.info.lifecycle_stage == "active" else ""
        facts: dict[str, Any] = {"unknown": unknown, "are_renumbered": keys.are_renumbered, "run_id": run_id}
        evaluation = Evaluation(is_declared=bool(rows), learned_rows=sum(known), **facts)
        try:
            scores = trial.within(registry.time_limit, self._evaluate, registry.load(model.model_uri), held_out)
        except (ServerError, ConfigError):
            raise
        except Exception as error:
            if is_outage(error):
                raise outage(f"{model.model_uri} cannot be evaluated now: nothing is decided", error) from error
            is_there = not isinstance(error, trial.ModelGone)
            return replace(evaluation, trouble=trial.trouble_of(error), is_there=is_there)
        if not isinstance(scores, Scores):
            raise ConfigError("`evaluate` returned no Scores.", value=repr(scores)[:200], expected="Scores(metrics)")
        period, count = scores.period or keys.period, len(held_out)
        return replace(evaluation, scores=replace(scores, held_out=hash_of(held_out, keys), period=period, rows=count))


def _is_live(candidate: EvaluatedModel, champion: Production | None) -> bool:
    """Return whether a candidate is in production already."""
    return champion is not None and champion.has_alias and champion.evaluated.source == candidate.source


def _select(held_out: Any, known: list[bool]) -> Any:
    """Return the rows that are not known."""
    if hasattr(held_out, "iloc"):
        return held_out[[not each for each in known]]
    return [row for row, is_known in zip(held_out, known, strict=True) if not is_known]


def _rounded(scores: Scores | None) -> dict[str, float]:
    return {name: round(value, 6) for name, value in scores.as_dict()["metrics"].items()} if scores else {}


def _fields(production: Production | None) -> dict[str, Any]:
    if production is None:
        return {}
    fields = {name: getattr(production, name) for name in ("name", "version", "run_id", "model_uri")}
    return fields | {"score": f"{production.move.label} {production.move.score}" if production.move.score else ""}
