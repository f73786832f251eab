"""A registered model: which version is in production, how another one gets there, and the record of each move."""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import decision as verdicts
from mlflow_gate import lineage as chain
from mlflow_gate import moves as record
from mlflow_gate.alias import EVIDENCE_TAG, Alias, Evidence, Production, Status
from mlflow_gate.contest import LEAST_BLOCKS, Contest
from mlflow_gate.decision import Decision, Evaluation
from mlflow_gate.errors import ConfigError, Conflict, GateError, ModelError, Refused, ServerError
from mlflow_gate.learned import Learned, ends_of, hash_of, keys_in, read_learned
from mlflow_gate.lineage import COMMIT_TAG, Link, is_dirty, run_program
from mlflow_gate.moves import Move
from mlflow_gate.rules import Rule, read_rules
from mlflow_gate.scores import Scores
from mlflow_gate.turns import turn

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

DESCRIPTION_CHARACTERS = 5000  # the room that MLflow's database has
KEPT_CHARACTERS = 500  # of a run's tag, in the record


class Registry(Alias):
    """A registered model of an MLflow server, and the gate before its alias.

    ``evaluate(model, held_out)`` returns `Scores`. ``held_out`` is the data that models are judged on: a pandas object
    whose index holds the key of each row, or a sequence of keys; or a function that returns one. ``rules`` are limits
    by metric (``{"r2": {"min": 0.5}}``) or functions; ``contest`` is a `Contest` or its fields. ``refit(run,
    model_uri)`` fits what passed the gate again, on all rows, and returns run and model of that fit, which goes into
    production in its place; None to leave it. ``tags`` are the beginnings of those tags of a run that
    the record keeps in case the run is purged. ``decision`` is the file that holds the last decision of this tree,
    ``candidate`` the one that names a candidate.

    A model is loaded by `mlflow.pyfunc`; a subclass with another `load` serves other kinds, or loads more carefully.

    >>> registry = Registry("doctest", rules={"accuracy": {"min": 0.8}})
    >>> registry.production() is None, registry.history()
    (True, [])
    """

    def __init__(
        self,
        name: str,
        alias: str = "production",
        *,
        evaluate: Callable[[Any, Any], Scores] | None = None,
        held_out: Any = None,
        rules: Mapping[str, Any] | None = None,
        contest: Contest | Mapping[str, Any] | None = None,
        refit: Callable[[Run, str], tuple[str, str] | None] | None = None,
        tags: Sequence[str] = ("mlflow_gate.", COMMIT_TAG),
        candidate: Path | str | None = None,
        decision: Path | str | None = None,
    ) -> None:
        super().__init__(name, alias)
        self.rules = read_rules(rules or {})
        try:
            self.contest = Contest(**contest) if isinstance(contest, Mapping) else contest
        except TypeError as error:
            expected = "metric, higher_is_better, min_gain, near_tie, alpha, max_gain, name"
            raise ConfigError("The contest cannot be read.", value=error, expected=expected) from None
        self.metric = self.contest.metric if self.contest else ""
        self.tags = tuple(tags)
        self.candidate_file = Path(candidate) if candidate else None
        self.decision_file = Path(decision) if decision else None
        self._evaluate, self._held_out, self._refit = evaluate, held_out, refit

    # -- what may differ from one problem to another -------------------------------------------------------------------
    def load(self, model_uri: str) -> Any:
        """Load a model, of a run (`models:/m-...`) or of a version; raise whatever says why that is not possible."""
        import tempfile

        import mlflow

        # MLflow leaves what it downloads; a model may need its files for as long as it predicts, and no longer.
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-gate-", ignore_cleanup_errors=True))
            model = mlflow.pyfunc.load_model(model_uri, dst_path=folder)
            weakref.finalize(model, stack.pop_all().close)
        return model

    def learned(self, run_id: str, tags: Mapping[str, str]) -> Learned | None:
        """Return what a run's model learned from; None when the run does not declare it (`log_learned`)."""
        return read_learned(run_id, tags, self.client)

    def origin(self, run: Run | None, tags: Mapping[str, str]) -> list[Link]:
        """Return the first links of a model's lineage, up to its run."""
        return [chain.data_link(run, tags), chain.commit_link(tags)]

    @property
    def checks(self) -> dict[str, Callable[[Registry, dict[str, dict[str, str]]], str | None]]:
        """What `verify` calls for each kind of link: a function of this and of all facts, which returns the trouble."""
        return dict(chain.CHECKS)

    def status(self, decision: Path | str | Mapping[str, Any] | None = None) -> Status:
        """Return which version is in production, from where, and whether this tree's decision says the same.

        ``decision`` is a `Decision` as JSON or its file, by default the one of this registry.

        >>> print(Registry("doctest").status())
        doctest: nothing is in production
        """
        now = self.production()
        decided = verdicts.read_decision(decision if decision is not None else self.decision_file)
        if now is None:
            line = f"{self.name}: nothing is in production"
        else:
            commit, branch = now.tags.get(COMMIT_TAG, ""), now.move.run.get("branch", "")
            origin = f"commit {commit[:10]}" if commit else "an unknown commit"
            origin += f" (branch {branch})" if branch else ""
            origin += ", with uncommitted changes" if is_dirty(now.tags) else ""
            since = f" since {now.move.when}" if now.move.when else ""
            score = f", {now.move.label} {now.move.score}" if now.move.score else ""
            line = f"{now} is in production{since}, {now.move.action}, from {origin}{score}"
        if decided is None:
            return Status(line, now, None)
        named = (decided.get("production") or {}).get("version")
        agrees = named == (now.version if now else None)
        line += f"; this tree's decision: {decided.get('reason')}"
        line += (
            "" if agrees else f"; that left {f'version {named}' if named else 'nothing'} in production: decide again"
        )
        return Status(line, now, agrees)

    # -- the gate ------------------------------------------------------------------------------------------------------
    def judge(self, run_id: str, model_uri: str | None = None) -> tuple[Decision, Production | None]:
        """Put the model of a run before the gate and return the decision, and what is in production. Nothing changes.

        If the champion learned from some of the held-out rows, both are scored on the other ones, as long as these fill
        six blocks. Raises ModelError when there is no such run or model, ConfigError for rules that cannot be applied.
        """
        run, model_uri = self._candidate(run_id, model_uri)
        champion = self.production()
        held_out = self._rows()
        if self._evaluate is None or held_out is None:
            expected = "Registry(name, evaluate=..., held_out=...)"
            raise ConfigError("A gate needs a function that scores, and held-out data.", expected=expected)
        its_learned = self.learned(run_id, run.data.tags)
        candidate = self.evaluate(model_uri, its_learned, held_out)
        if champion is None:
            return self._veto(verdicts.decide(candidate, None, self.rules, self.contest), run_id, None), None
        judged = champion.evidence
        if judged.run_id == run_id:
            return self._kept(candidate, champion), champion
        other, contest = self.learned(judged.run_id, judged.tags), self.contest
        if other and its_learned and other.population != its_learned.population:
            other = replace(other, rows=frozenset())  # whatever the keys, these are not the rows
        if contest and other and its_learned and other.source != its_learned.source:
            contest = replace(contest, max_gain=None)  # a model of other data does not say what is to be believed
        fresh = [other is None or not other.knows(key) for key in keys_in(held_out)]
        if 0 < sum(fresh) < len(fresh):
            rest = self.evaluate(model_uri, its_learned, _select(held_out, fresh))
            if rest.scores is None or len(rest.scores.blocks) >= LEAST_BLOCKS:
                held_out = _select(held_out, fresh)
                candidate = replace(rest, learned_rows=candidate.learned_rows)
        beaten = self.evaluate(judged.model_uri, other, held_out)
        decision = verdicts.decide(candidate, beaten, self.rules, contest)
        return self._veto(decision, run_id, champion), champion

    def evaluate(self, model_uri: str, learned: Learned | None, held_out: Any) -> Evaluation:
        """Load and score a model; one that cannot be loaded or cannot predict has a `trouble`."""
        assert self._evaluate is not None
        facts: dict[str, Any] = {"is_declared": learned is not None}
        if learned is not None:
            facts |= {"learned_rows": sum(map(learned.knows, keys_in(held_out))), "source": learned.source}
        try:
            scores = self._evaluate(self.load(model_uri), held_out)
        except (ServerError, ConfigError):
            raise
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything: that is a finding on it
            self.connect()  # raises when the server is gone, which says nothing about the model
            return Evaluation(trouble=_trouble(error), **facts)
        if not isinstance(scores, Scores):
            raise ConfigError("The function that scores returned no Scores.", value=repr(scores)[:200])
        period = scores.period or ends_of(held_out)
        return Evaluation(replace(scores, held_out=hash_of(held_out), period=period, rows=len(held_out)), **facts)

    def promote(
        self,
        run_id: str,
        model_uri: str | None = None,
        *,
        dry_run: bool = False,
        force: bool = False,
        why: str = "",
        even_in_experiment: bool = False,
    ) -> Decision:
        """Put the model of a run before the gate; register it and move the alias to it when it passes.

        A run that was promoted before keeps its version. When the model in production changes meanwhile, the candidate
        is compared with the new one. With ``force`` a person overrules the gate, which needs ``why``. In an experiment
        of DVC nothing moves, unless ``even_in_experiment``. What goes into production is the refit of the candidate, if
        there is one; it has to pass the rules, too. Errors are those of `judge`; also Conflict.

        >>> Registry("doctest").promote("0" * 32)
        Traceback (most recent call last):
            ...
        mlflow_gate.errors.ModelError: There is no such run.
          found:    00000000000000000000000000000000
          next:     look for it in MLflow; MLFLOW_TRACKING_URI names the server
        """
        if force and not why.strip():
            expected = 'force=True, why="..." (--force --why "...")'
            raise ConfigError("A forced promotion needs a reason.", expected=expected)
        record.provenance(why)  # raises for a reason that is too long
        experiment = None if even_in_experiment else experiment_of_dvc()
        refitted = None
        for is_alone in (False, True):  # where another process is faster, the second time nobody else can be
            with turn(self.client, self.name) if is_alone else contextlib.nullcontext() as keep:
                decision, champion = self.judge(run_id, model_uri)
                decision = verdicts.hold(verdicts.force(decision) if force else decision, experiment)
                decision = replace(decision, run_id=run_id, production=_identity(champion))
                is_kept = champion is not None and champion.evidence.run_id == run_id
                if dry_run or not decision.promoted or is_kept:
                    return decision
                run, judged_uri = self._candidate(run_id, model_uri)
                if self._refit and refitted is None and not self.versions_of(run_id, judged_uri):
                    refitted = self._refit(run, judged_uri)
                if refitted:
                    evaluation = self.evaluate(refitted[1], None, self._rows())
                    decision = verdicts.check_refit(decision, evaluation, self.rules)
                    decision = verdicts.force(decision) if force else decision
                    if not decision.promoted:
                        return decision
                try:
                    moved = self.apply(decision, run_id, judged_uri, champion, why, keep, refitted)
                except Conflict:
                    if is_alone:
                        raise
                else:
                    return replace(decision, production=_identity(moved))
        raise AssertionError  # never reached

    def apply(
        self,
        decision: Decision,
        run_id: str,
        model_uri: str,
        replaced: Production | None,
        why: str = "",
        keep: Callable[[], None] | None = None,
        refitted: tuple[str, str] | None = None,
    ) -> Production:
        """Register the model of a decision, unless its run has a version, and move the alias to it.

        ``refitted`` are run and model of its refit, which is registered in its place. ``keep`` is that of a caller who
        has the turn (`mlflow_gate.turns`). Raises Refused when the decision does not allow it, Conflict when
        ``replaced``, with which the candidate was compared, is not in production any more.

        >>> Registry("doctest").apply(Decision(False, "refused: a rule"), "0" * 32, "models:/m-0", None)
        Traceback (most recent call last):
            ...
        mlflow_gate.errors.Refused: The gate refused the candidate.
          found:    refused: a rule
        """
        from mlflow.exceptions import MlflowException

        if not decision.promoted:
            raise Refused("The gate refused the candidate.", value=decision.reason)
        record.provenance(why)  # raises for a reason that is too long
        with contextlib.suppress(MlflowException):  # it exists already; if not, the next step says so
            self.client.create_registered_model(self.name)
        with contextlib.nullcontext(keep) if keep else turn(self.client, self.name) as keep:
            self._check_unchanged(replaced)
            version = self._version_of(run_id, model_uri, decision, refitted)
            judged = decision.candidate
            names = {"hash": "held_out", "period": "period", "rows": "rows", "part": "part"}
            held_out = {name: getattr(judged, field) for name, field in names.items()} if judged else {}
            kept = self._kept_tags(version.run_id)
            move = Move(
                number=0,
                action=record.FORCED if decision.forced else record.PROMOTED,
                version=str(version.version),
                **record.provenance(why),
                reason=decision.reason,
                replaced=replaced.version if replaced else None,
                scores=_rounded(decision.candidate),
                replaced_scores=_rounded(decision.champion),
                held_out=held_out,
                metric=self.metric,
                rules=decision.as_dict()["rules"],
                run=kept | ({"branch": branch} if (branch := run_program("git", "branch", "--show-current")) else {}),
            )
            self.move(move, keep)
            return self.production()  # type: ignore[return-value] # the alias was just set

    def rollback(self, to: str | None = None, why: str = "") -> Production:
        """Bring back what was in production before, or the version ``to``; return what is now in production.

        The version is loaded first. Each rollback goes one step further back. The run that was in production is refused
        by the gate from then on (see the README). Raises ModelError when there is no such version, it never was in
        production, or it cannot be loaded; Conflict when the alias moves meanwhile.

        >>> Registry("doctest").rollback()
        Traceback (most recent call last):
            ...
        mlflow_gate.errors.ModelError: Nothing was ever in production.
          next:     promote a model
        """
        signed, before = record.provenance(why), self.production()
        moves = self.history()
        target = record.target_of(to, moves, before.version if before else None)
        self._check_loads(target)  # may take minutes, so before the turn
        with turn(self.client, self.name) as keep:
            self._check_unchanged(before)
            moves, current = self.history(), self._current()
            last = {move.version: move for move in moves}  # the last move that brought each version
            action = record.ROLLED_BACK if target in record.line_of(moves) else record.RESTORED
            reason = f"{action}{f' from version {current}' if current else ''} to version {target}"
            reason += self._source_changed(target, before)
            self.move(
                Move(
                    number=0,
                    action=action,
                    version=target,
                    **signed,
                    reason=reason,
                    replaced=current,
                    scores=last[target].scores,
                    held_out=last[target].held_out,
                    metric=last[target].metric,
                    run=last[target].run,
                ),
                keep,
            )
            return self.production()  # type: ignore[return-value] # the alias was just set

    # -- lineage -------------------------------------------------------------------------------------------------------
    def lineage(self, subject: str | None = None) -> list[Link]:
        """Return where a model comes from, link by link: data, commit, run, environment, model, decision, production.

        The subject is a version (`3`, `NAME/3`), a run's id, a file that names a version, or None for the model in
        production. Raises ModelError when there is no such thing.

        >>> Registry("doctest").lineage()
        Traceback (most recent call last):
            ...
        mlflow_gate.errors.ModelError: No model is in production.
          next:     promote a model; or name a version or a run
        """
        return chain.trace(self, subject)

    def verify(self, links: Sequence[Link]) -> list[Link]:
        """Return links, each with a `trouble` when what it names is gone, or is not what it was.

        >>> Registry("doctest").verify([])
        []
        """
        facts = {link.kind: link.facts for link in links}
        checks = self.checks
        return [
            replace(link, trouble=checks[link.kind](self, facts)) if link.known and link.kind in checks else link
            for link in links
        ]

    # -- inside --------------------------------------------------------------------------------------------------------
    def _candidate(self, run_id: str, model_uri: str | None) -> tuple[Run, str]:
        """Return the run, and the address of the model that it logged; raise ModelError for another's."""
        run = self.find_run(run_id)
        if run is None:
            step = "look for it in MLflow; MLFLOW_TRACKING_URI names the server"
            raise ModelError("There is no such run.", value=run_id, next_step=step)
        logged = [f"models:/{output.model_id}" for output in (run.outputs.model_outputs if run.outputs else [])]
        if model_uri is None and len(logged) == 1:
            return run, logged[0]
        if model_uri is None or model_uri not in logged:
            raise ModelError(
                "The candidate's model was logged by another run." if model_uri else "Which model of the run is meant?",
                value=model_uri or f"the run logged {len(logged)}",
                expected=f"a model of the run {run_id}: {', '.join(logged) or 'it has none'}",
                next_step="log one in the run: mlflow.<flavor>.log_model(model, name='model')" if not logged else None,
            )
        return run, model_uri

    def _veto(self, decision: Decision, run_id: str, champion: Production | None) -> Decision:
        """Return the decision, refused if the run was rolled back from since the last promotion of another."""
        veto = record.veto_on(self.versions_of(run_id), self._moves(champion.version if champion else None))
        if veto is None:
            return decision
        value = f"version {veto.replaced} of this run was, on {veto.when} by {veto.who}: {veto.why}"
        step = "send another candidate, or overrule the rollback with --force --why"
        rule = Rule(verdicts.VETO, value, "not rolled back from", passed=False, next_step=step)
        return verdicts.refuse(decision, rule)

    def _kept(self, again: Evaluation, champion: Production) -> Decision:
        """Return the decision that brought what is in production, with a note on how it does now."""
        moves = [move for move in self.history() if move.version == champion.version]
        decided = [move for move in moves if move.action in (record.PROMOTED, record.FORCED)]
        move = (decided or moves)[-1]
        now = verdicts.decide(again, None, self.rules, self.contest)
        metrics = again.scores.metrics if again.scores else {}
        metric = self.metric or next(iter(metrics), "")
        figure = f"{metric} {metrics[metric]:.4f}" if metric in metrics else again.trouble
        verdict = "every rule passed" if now.promoted else f"it would be {now.reason}"
        today = record.provenance("")["when"]
        judged = again.scores
        period = "" if judged is None else f" on {' to '.join(judged.period or ()) or f'rows {judged.held_out}'}"
        note = f"decided again {today}, it is in production already: {figure}{period}; {verdict}"
        rules = tuple(Rule(**rule) for rule in move.rules) or now.rules
        reason = move.reason or f"it came into production {move.action}, without the gate"
        forced = move.action == record.FORCED
        return replace(
            now, promoted=True, forced=forced, reason=reason, rules=rules, notes=(note,), champion=again.scores
        )

    def _rows(self) -> Any:
        """Return the data that models are judged on."""
        return self._held_out() if callable(self._held_out) else self._held_out

    def _kept_tags(self, run_id: str | None) -> dict[str, str]:
        run = self.find_run(run_id)
        tags = run.data.tags if run else {}
        return {name: value[:KEPT_CHARACTERS] for name, value in tags.items() if name.startswith(self.tags)}

    def _version_of(
        self, run_id: str, model_uri: str, decision: Decision, refitted: tuple[str, str] | None
    ) -> ModelVersion:
        if made := self.versions_of(run_id, model_uri):
            return self.client.get_model_version(self.name, max(made, key=int))
        evidence = Evidence(run_id, model_uri, self._kept_tags(run_id))
        run_id, source = refitted or (run_id, model_uri)
        return self.client.create_model_version(
            self.name,
            source=source,
            run_id=run_id,
            tags={EVIDENCE_TAG: json.dumps(asdict(evidence))} if refitted else None,
            model_id=source.removeprefix("models:/"),
            description=decision.reason[:DESCRIPTION_CHARACTERS],
            await_creation_for=0,  # it exists when the server has answered
        )

    def _check_loads(self, version: str) -> None:
        try:
            self.load(self.uri_of(version))
        except GateError:
            raise
        except Exception as error:
            self.connect()  # raises when the server is gone
            what = f"Version {version} cannot be loaded, so the alias stays."
            raise ModelError(
                what, value=_trouble(error), next_step="mlflow-gate history; roll back to another"
            ) from error

    def _source_changed(self, target: str, before: Production | None) -> str:
        """Return the words on another source of data than that of the model that goes; empty for the same one."""
        version = self.client.get_model_version(self.name, target)
        tags = self.tags_of(version, self.find_run(version.run_id))
        now = self.learned(before.run_id, before.tags) if before else None
        then = self.learned(version.run_id or "", tags)
        if now is None or then is None or now.source == then.source:
            return ""
        return (
            f"; it learned from {then.source or 'an unnamed source'}, the other from {now.source or 'an unnamed one'}"
        )


def experiment_of_dvc() -> str | None:
    """Return the name of the experiment of DVC (`dvc exp run`) in which this runs; None outside one."""
    return os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV") or None


def _select(held_out: Any, kept: list[bool]) -> Any:
    if hasattr(held_out, "iloc"):
        return held_out[kept]
    return [row for row, keep in zip(held_out, kept, strict=True) if keep]


def _rounded(scores: Scores | None) -> dict[str, float]:
    return {name: round(value, 6) for name, value in scores.as_dict()["metrics"].items()} if scores else {}


def _identity(production: Production | None) -> dict[str, Any]:
    if production is None:
        return {}
    return {name: getattr(production, name) for name in ("name", "version", "run_id", "model_uri")}


def _trouble(error: Exception) -> str:
    words = getattr(error, "what", None)
    return f"{words} {error.value}" if words and hasattr(error, "value") else f"{type(error).__name__}: {error!s:.300}"
