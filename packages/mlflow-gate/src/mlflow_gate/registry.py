"""A registered model: which version is in production, how another one gets there, and the record of each move."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import decision as verdicts
from mlflow_gate import lineage as chain
from mlflow_gate import record, trial
from mlflow_gate.contest import LEAST_BLOCKS, Contest
from mlflow_gate.decision import Decision, Evaluation
from mlflow_gate.errors import ConfigError, Conflict, ModelError, ServerError
from mlflow_gate.keys import LEARNED_TAG, Keys, TrainingRows, hash_of, training_rows
from mlflow_gate.lineage import Link
from mlflow_gate.record import Evidence, Move, Production, Record, Status
from mlflow_gate.rules import Finding, Rules, Scores, read_rules
from mlflow_gate.server import connect, find, is_outage, outage, page
from mlflow_gate.turns import turn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

DESCRIPTION_CHARACTERS = 5000  # the room that MLflow's database has
KEPT_CHARACTERS = 500  # of a run's tag, in the record
HELD_OUT = {"hash": "held_out", "period": "period", "rows": "rows", "part": "part"}


class Registry:
    """A registered model of an MLflow server, and the gate before its alias.

    ``evaluate(model, held_out)`` returns `Scores`. ``held_out`` is the data that models are judged on: a pandas object
    whose index holds the key of each row, or a sequence of keys. ``rules`` are a `Rule`, its fields or a function for
    each metric (``{"r2": {"min": 0.5}}``). Data, rules and ``contest`` may each be a function that returns it, which is
    called for each decision. ``refit(run, model_uri)`` fits what passed the gate again, on all rows, and returns run
    and model of that fit, which goes into production in its place; None to leave it. ``load(folder)`` returns the model
    in a folder of files, by default by `mlflow.pyfunc`; loading and ``evaluate`` run in a thread of their own, for at
    most ``time_limit`` seconds each. ``links(run, tags)`` returns further links of a lineage. ``tags`` are the
    beginnings of those tags of a run that the record keeps in case the run is purged. ``decision`` is the file with the
    last decision of this tree, ``candidate`` the one that names a candidate. ``client()`` returns MLflow's client.

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
        rules: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        contest: Contest | Callable[[], Contest] | None = None,
        refit: Callable[[Run, str], tuple[str, str] | None] | None = None,
        load: Callable[[Path], Any] | None = None,
        links: Callable[[Run | None, Mapping[str, str]], list[Link]] | None = None,
        tags: Sequence[str] = ("mlflow_gate.", chain.COMMIT_TAG),
        candidate: Path | str | None = None,
        decision: Path | str | None = None,
        time_limit: float = 600.0,
        client: Callable[[], MlflowClient] = connect,
    ) -> None:
        self.name, self.alias, self.time_limit = name, alias, time_limit
        self.candidate_file, self._decision_file = (Path(file) if file else None for file in (candidate, decision))
        self._rules: Callable[[], Rules] = lambda: read_rules(rules() if callable(rules) else rules or {})
        self._contest: Callable[[], Contest | None] = lambda: contest() if callable(contest) else contest
        _ = callable(rules) or self._rules()  # a mistake is an error at once
        self._evaluate, self._held_out, self._refit, self._read = evaluate, held_out, refit, load
        self._links, self._tags, self._client = links or (lambda _run, _tags: []), tuple(tags), client
        self._connected: MlflowClient | None = None
        self._training_rows: dict[tuple[str, str], TrainingRows | None] = {}

    @property
    def client(self) -> MlflowClient:
        """The client of the tracking server; made at the first use, which raises ServerError when it is away."""
        self._connected = self._connected or self._client()
        return self._connected

    def load(self, model_uri: str) -> Any:
        """Load a model, of a run (`models:/m-...`) or of a version, within the time limit; raise what says why not."""
        return trial.load(model_uri, self._read, self.time_limit)

    # -- what is in production -----------------------------------------------------------------------------------------
    def production(self, known: Production | None = None) -> Production | None:
        """Return the version in production, or None when there is none.

        ``known`` is the last answer that the caller got: it is returned, after one request, if the alias has not moved.
        """
        version = find(self.client.get_model_version_by_alias, self.name, self.alias)
        last = version and (str(version.version), version.run_id or "", version.tags.get(record.LAST_TAG + self.alias))
        if known and last == (known.version, known.run_id, str(known.move.number)):
            return known
        return self._describe(self._record()) if version else None

    def history(self, *, note: bool = False) -> list[Move]:
        """Return all moves of the alias, oldest first; empty when nothing was ever in production.

        With ``note`` a move by hand, for example in MLflow's UI, is written down, so that a rollback can return to it.
        """
        moves = self._record().moves
        if note and not all(move.recorded for move in moves):
            with turn(self.client, self.name):
                moves = self._note_move_by_hand().moves
        return [replace(move, number=place) for place, move in enumerate(moves, start=1)]

    def status(self, decision: Path | str | None = None) -> Status:
        """Return what is in production, and whether this tree's decision says the same.

        ``decision`` is the file of a `Decision` as JSON, by default the one of this registry.
        """
        read, decided = self._record(), verdicts.read_decision(decision or self._decision_file)
        now = self._describe(read) if read.version else None
        line = _line(now) if now else f"{self.name}: nothing is in production"
        if not now and read.moves:
            last = read.moves[-1]
            line += f": the alias was taken away from version {last.version}, in production since {last.when}"
        if decided is None:
            return Status(line, now, None)
        named = (decided.get("production") or {}).get("version")
        left = f"; that left {f'version {named}' if named else 'nothing'} in production: decide again"
        agrees = named == read.current
        return Status(f"{line}; this tree's decision: {decided.get('reason')}{left * (not agrees)}", now, agrees)

    def lineage(self, version: str | None = None) -> list[Link]:
        """Return where a version (`3`, `NAME/3`) comes from, link by link; by default the one in production.

        Raises ModelError when there is no such version.
        """
        read, number = self._record(), (version or "").removeprefix(f"{self.name}/")
        is_number = number.isdecimal() and len(number) < 10  # more is an error of the database
        entry = find(self.client.get_model_version, self.name, number) if is_number else read.version
        if entry is None or (number and not is_number):
            what = f"There is no version {number} of {self.name}." if number else "No model is in production."
            raise ModelError(what, next_step=f"mlflow-gate history {self.name}; or promote a model")
        described = self._describe(read, entry)
        judged = described.evidence
        run = self._find_run(judged.run_id)
        links = [chain.data_link(run, judged.tags), chain.commit_link(judged.tags), *self._links(run, judged.tags)]
        links.append(chain.run_link(run, self._page(run)))
        if described.refit_of:
            run = self._find_run(described.run_id)
            data, link = chain.data_link(run, described.tags), chain.run_link(run, self._page(run), "refit")
            links.append(replace(link, facts=link.facts | data.facts))
        url = page(self.client, f"models/{self.name}/versions/{entry.version}")
        facts = {"version": described.version, "files": entry.source}
        links.append(Link.of("model", str(described), facts, url))
        return [*links, *chain.move_links(described.version, read.moves, read.current)]

    # -- the gate ------------------------------------------------------------------------------------------------------
    def judge(self, run_id: str, model_uri: str | None = None) -> tuple[Decision, Production | None]:
        """Put the model of a run before the gate and return the decision, and the champion. Nothing changes.

        Without the alias the last version of the record is the champion. If it learned from some of the held-out rows,
        both are scored on the other ones, as long as these fill six blocks. Raises ModelError when there is no such run
        or model, ConfigError for rules that cannot be applied, ServerError when a model cannot be read now.
        """
        run, model_uri = self._candidate(run_id, model_uri)
        held_out, keys = self._rows()
        read, rules, contest = self._record(), self._rules(), self._contest()
        champion, rows = self._describe(read) if read.moves else None, self._trained_on(run_id, run.data.tags)
        candidate, beaten = self._evaluation(model_uri, rows, held_out, keys), None
        decision = verdicts.decide(candidate, None, rules, None)
        if champion and champion.evidence.run_id == run_id:
            back = "promoted: every rule passed and nothing was in production after it"
            alone = replace(decision, reason=back if decision.promoted else decision.reason)
            return self._kept(decision, champion, contest) if champion.has_alias else alone, champion
        if champion and contest:
            other = self._trained_on(champion.evidence.run_id, champion.evidence.tags)
            if other and rows and "" != other.population != rows.population != "":
                other = TrainingRows(keys.kinds, source=other.source)  # whatever the keys, these are not the rows
            if other and rows and other.source != rows.source:
                contest = replace(contest, max_gain=None)  # a model of other data does not say what can be trusted
            known = other.find(keys)[0] if other else []
            if 0 < sum(known) < len(known):
                rest = _select(held_out, known)
                on_rest = self._evaluation(model_uri, rows, rest, Keys.of(rest))
                if on_rest.scores is None or len(on_rest.scores.blocks) >= LEAST_BLOCKS:
                    candidate = replace(on_rest, learned_rows=candidate.learned_rows)
                    held_out, keys = rest, Keys.of(rest)
            beaten = self._evaluation(champion.evidence.model_uri, other, held_out, keys)
            if beaten.trouble and beaten.is_there:  # what fails once may be chance
                beaten = self._evaluation(champion.evidence.model_uri, other, held_out, keys)
        beaten = beaten or (Evaluation() if champion else None)
        decision = verdicts.decide(candidate, beaten, rules, contest)
        if veto := record.veto_on(run_id, read.moves):
            value = f"version {veto.replaced} of this run was, on {veto.when} by {veto.who}: {veto.why}"
            step = "send another candidate, or overrule the rollback with --force --why"
            finding = Finding(verdicts.VETO, value, "not rolled back from", passed=False, next_step=step)
            decision = verdicts.refuse(decision, finding)
        return decision, champion

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
        """
        if force and not why.strip():
            expected = 'force=True, why="..." (--force --why "...")'
            raise ConfigError("A forced promotion needs a reason.", expected=expected)
        experiment = os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV")
        refitted = None
        for is_alone in (False, True):  # where another process is faster, the second time nobody else can be
            with turn(self.client, self.name) if is_alone else contextlib.nullcontext() as keep:
                decision, champion = self.judge(run_id, model_uri)
                live = champion if champion and champion.has_alias else None
                decision = replace(decision, run_id=run_id, production=_identity(live))
                held = verdicts.force(decision) if force else decision
                held = held if even_in_experiment else verdicts.hold(held, experiment or None)
                if dry_run or not held.promoted or (live and live.evidence.run_id == run_id):
                    return held
                run, judged_uri = self._candidate(run_id, model_uri)
                if self._refit and refitted is None and not self._version_of(judged_uri):
                    refitted = self._refit(run, judged_uri)
                if refitted:
                    evaluation = self._evaluation(refitted[1], None, *self._rows())
                    decision = verdicts.check_refit(decision, evaluation, self._rules())
                decision = verdicts.force(decision) if force else decision
                if not decision.promoted:
                    return decision
                with contextlib.nullcontext() if is_alone else contextlib.suppress(Conflict):
                    moved = self.apply(decision, run_id, judged_uri, live, why, keep, refitted)
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
        has the turn. Raises Conflict when ``replaced``, which had the alias when the candidate was judged, is not in
        production any more.
        """
        signed, judged = record.provenance(why), decision.candidate
        with contextlib.suppress(Exception):  # it exists already; if not, the next step says so
            self.client.create_registered_model(self.name)
        with contextlib.nullcontext(keep) if keep else turn(self.client, self.name) as keep:
            self._check_unchanged(replaced)
            version = self._version_of(model_uri) or self._new_version(*(refitted or (run_id, model_uri)), decision)
            move = Move(
                0,
                record.FORCED if decision.forced else record.PROMOTED,
                str(version.version),
                reason=decision.reason,
                run_id=run_id,
                model_uri=model_uri,
                scores=_rounded(judged),
                replaced_scores=_rounded(decision.champion),
                held_out={name: getattr(judged, field) for name, field in HELD_OUT.items()} if judged else {},
                metric=decision.metric,
                findings=decision.as_dict()["findings"],
                run=self._kept_tags(version.run_id) | {"branch": chain.git_branch()},
                judged=self._kept_tags(run_id),
                **signed,
            )
            return self._move(move, keep)

    def _new_version(self, run_id: str, source: str, decision: Decision) -> ModelVersion:
        return self.client.create_model_version(
            self.name,
            source,
            run_id,
            description=decision.reason[:DESCRIPTION_CHARACTERS],
            await_creation_for=0,  # it exists after the answer
            model_id=source.removeprefix("models:/"),
        )

    def rollback(self, to: str | None = None, why: str = "") -> Production:
        """Bring back what was in production before, or the version ``to``; return what is now in production.

        The version is loaded first. Each rollback goes one step further back. The run that was in production is refused
        by the gate from then on (see the README). Raises ModelError when there is no such version, it never was in
        production, or it cannot be loaded; Conflict when the alias moves meanwhile.
        """
        signed, read = record.provenance(why), self._record()
        before = self._describe(read) if read.version else None
        exists = partial(find, self.client.get_model_version, self.name)
        target = record.target_of(to, read.moves, read.current, exists)
        try:
            self.load(f"models:/{self.name}/{target}")  # may take minutes, so before the turn
        except ServerError:
            raise
        except Exception as error:
            what = f"Version {target} cannot be loaded, so the alias stays."
            step = "mlflow-gate history; roll back to another"
            raise ModelError(what, value=trial.trouble_of(error), next_step=step) from error
        with turn(self.client, self.name) as keep:
            self._check_unchanged(before)
            moves = self._record().moves
            last = {move.version: move for move in moves}[target]  # that brought this version
            action = record.ROLLED_BACK if target in record.line_of(moves) else record.RESTORED
            reason = f"{action}{f' from version {before.version}' if before else ''} to version {target}"
            move = replace(last, action=action, reason=reason, replaced_scores={}, findings=[], recorded=True, **signed)
            return self._move(move, keep)

    # -- inside --------------------------------------------------------------------------------------------------------
    def _record(self) -> Record:
        return Record(self.client, self.name, self.alias)

    def _find_run(self, run_id: str | None) -> Run | None:
        """Return a run; None when it was purged or never existed: a version has its own copy of the model."""
        return find(self.client.get_run, run_id) if run_id else None

    def _candidate(self, run_id: str, model_uri: str | None) -> tuple[Run, str]:
        """Return the run, and the address of the model that it logged; raise ModelError for another's."""
        if (run := self._find_run(run_id)) is None:
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
                next_step=None if logged else "log one in the run: mlflow.<flavor>.log_model(model, name='model')",
            )
        return run, model_uri

    def _rows(self) -> tuple[Any, Keys]:
        """Return the data that models are judged on, and its keys."""
        held_out = self._held_out() if callable(self._held_out) else self._held_out
        if self._evaluate is None or held_out is None:
            expected = "Registry(name, evaluate=..., held_out=...)"
            raise ConfigError("A gate needs a function that scores, and held-out data.", expected=expected)
        return held_out, Keys.of(held_out)

    def _trained_on(self, run_id: str, tags: Mapping[str, str]) -> TrainingRows | None:
        known = (run_id, tags.get(LEARNED_TAG, ""))
        if known not in self._training_rows:  # a list may be long, and is read once
            self._training_rows[known] = training_rows(run_id, tags, self.client)
        return self._training_rows[known]

    def _evaluation(self, model_uri: str, rows: TrainingRows | None, held_out: Any, keys: Keys) -> Evaluation:
        """Load and score a model; one that cannot be loaded or cannot predict has a `trouble`."""
        assert self._evaluate is not None
        known, unknown = rows.find(keys) if rows else ([], "")
        judged = Evaluation(is_declared=bool(rows), learned_rows=sum(known), unknown=unknown)
        try:
            scores = trial.within(self.time_limit, self._evaluate, self.load(model_uri), held_out)
        except (ServerError, ConfigError):
            raise
        except Exception as error:
            if is_outage(error):
                raise outage(f"{model_uri} cannot be judged now: nothing is decided", error) from error
            return replace(judged, trouble=trial.trouble_of(error), is_there=not isinstance(error, trial.ModelGone))
        if not isinstance(scores, Scores):
            raise ConfigError("The function that scores returned no Scores.", value=repr(scores)[:200])
        period, count = scores.period or keys.period, len(held_out)
        return replace(judged, scores=replace(scores, held_out=hash_of(held_out, keys), period=period, rows=count))

    def _kept(self, now: Decision, champion: Production, contest: Contest | None) -> Decision:
        """Return the decision that brought what is in production, with a note on how it does ``now``."""
        moves = [move for move in self.history() if move.version == champion.version]
        move, scores = ([each for each in moves if each.findings] or moves)[-1], now.candidate
        metrics = scores.metrics if scores else {}
        metric = contest.metric if contest else next(iter(metrics), "")
        figure = f"{metric} {metrics[metric]:.4f}" if metric in metrics else str(now.findings[0])
        verdict = "every rule passed" if now.promoted else f"it would be {now.reason}"
        period = f" on {' to '.join(scores.period or ()) or f'rows {scores.held_out}'}" if scores else ""
        today = record.provenance("")["when"]
        note = f"decided again {today}, it is in production already: {figure}{period}; {verdict}"
        reason = move.reason or f"it came into production {move.action}, without the gate"
        findings = tuple(Finding(**finding) for finding in move.findings) or now.findings
        kept = replace(now, promoted=True, reason=reason, findings=findings, champion=scores, note=note)
        return replace(kept, forced=move.action == record.FORCED)

    def _version_of(self, model_uri: str) -> ModelVersion | None:
        """Return the last version that is a model, or its refit; None when there is none."""
        made = self.client.search_model_versions(f"source_path='{model_uri}'")
        named, numbers = [each for each in made if each.name == self.name], self._record().versions_of(model_uri)
        judged = (find(self.client.get_model_version, self.name, number) for number in numbers)
        return max([*named, *filter(None, judged)], key=lambda version: int(version.version), default=None)

    def _describe(self, read: Record, version: ModelVersion | None = None) -> Production:
        """Return a version; by default that of the alias, or without it the last of the record, deleted or not."""
        number = str(version.version) if version else read.moves[-1].version
        version = version or read.version or find(self.client.get_model_version, self.name, number)
        kept = read.of(number) or Move(0, record.BY_HAND, number)
        run_id = (version.run_id or "") if version else kept.run_id
        run, refit_of = self._find_run(run_id), None
        if kept.run_id and kept.run_id != run_id:
            judged = self._find_run(kept.run_id)
            refit_of = Evidence(kept.run_id, kept.model_uri, kept.judged | (judged.data.tags if judged else {}))
        return Production(
            run_id,
            f"models:/{self.name}/{number}" if version else kept.model_uri,
            kept.run | (run.data.tags if run else {}),
            name=self.name,
            version=number,
            run_url=self._page(run),
            move=[kept, *(move for move in read.moves if move.version == number)][-1],
            refit_of=refit_of,
            has_alias=read.version is not None,
        )

    def _page(self, run: Run | None) -> str:
        return page(self.client, f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}") if run else ""

    def _kept_tags(self, run_id: str | None) -> dict[str, str]:
        tags = run.data.tags if (run := self._find_run(run_id)) else {}
        return {name: value[:KEPT_CHARACTERS] for name, value in tags.items() if name.startswith(self._tags)}

    def _move(self, move: Move, keep: Callable[[], None] | None = None) -> Production:
        """Record a move and make it; the caller has the turn, of which ``keep`` makes sure."""
        read = self._note_move_by_hand()
        replaced = read.moves[-1].version if read.moves else None
        move = replace(move, number=read.next_number, alias=self.alias, replaced=replaced)
        record.write(self.client, self.name, move, done=False)
        if keep:
            keep()
        self.client.set_registered_model_alias(self.name, self.alias, move.version)
        record.write(self.client, self.name, move, done=True)
        return self.production()  # type: ignore[return-value] # the alias was just set

    def _note_move_by_hand(self) -> Record:
        """Write down a move by hand, or one whose process was killed before it said so; the caller has the turn."""
        for move in self._record().moves:
            if not move.recorded:
                record.write(self.client, self.name, move, done=True)
        return self._record()

    def _check_unchanged(self, expected: Production | None) -> None:
        """Raise Conflict unless the alias is where it was when the decision was made."""
        before, after = expected.version if expected else None, self._record().current
        if before != after:
            what, step = "The model in production has changed since the decision.", "mlflow-gate history; try again"
            value, was = (f"version {each}" if each else "nothing" for each in (after, before))
            raise Conflict(what, value=value, expected=f"{was}, as before", next_step=step)


def _select(held_out: Any, known: list[bool]) -> Any:
    """Return the rows that are not known."""
    if hasattr(held_out, "iloc"):
        return held_out[[not each for each in known]]
    return [row for row, is_known in zip(held_out, known, strict=True) if not is_known]


def _rounded(scores: Scores | None) -> dict[str, float]:
    return {name: round(value, 6) for name, value in scores.as_dict()["metrics"].items()} if scores else {}


def _identity(production: Production | None) -> dict[str, Any]:
    names = ("name", "version", "run_id", "model_uri")
    return {name: getattr(production, name) for name in names} | {"line": _line(production)} if production else {}


def _line(now: Production) -> str:
    """Return what is in production, which move brought it and from where, for a person."""
    commit, branch = now.tags.get(chain.COMMIT_TAG, "")[:10], now.move.run.get("branch")
    parts = [f"{now.move.action} {now.move.when or ''}".strip()]
    parts += [f"from commit {commit or 'unknown'}" + (f" (branch {branch})" if branch else "")]
    parts += ["with uncommitted changes" if chain.is_dirty(now.tags) else ""]
    parts += [f"{now.move.label} {now.move.score}" if now.move.score else ""]
    return f"{now} is in production: " + ", ".join(filter(None, parts))
