"""A registered model: the version in production, the history of its alias, rollback and lineage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import loading, record
from mlflow_gate.decision import read_decision
from mlflow_gate.errors import ConfigError, Conflict, ModelError, ServerError
from mlflow_gate.lineage import COMMIT_TAG, Link, commit_link, data_link, is_dirty, move_links, run_link
from mlflow_gate.lock import locked
from mlflow_gate.record import EvaluatedModel, Move, Production, Record
from mlflow_gate.server import connect, find, page

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KEPT_CHARACTERS = 500  # maximum length of a run tag's value in the history


class Registry:
    """A registered model of an MLflow server, and the history of its alias.

    Parameters
    ----------
    name : str
        Name of the registered model.
    alias : str
        The alias of the version in production.
    client : callable
        Function that returns the MLflow client; called on first use.
    load : callable, optional
        ``load(folder)`` returns the model in a folder; by default `mlflow.pyfunc` loads it.
    links : callable, optional
        ``links(run, tags)`` returns additional links for the lineage.
    tags : sequence of str
        Prefixes of the run tags that the history keeps in case the run is purged.
    decision : path, optional
        The file with the last decision of this working tree, for `status`.
    time_limit : float
        Seconds that loading or evaluating a model may take.

    Raises
    ------
    ConfigError
        If the time limit is invalid; on first use, if MLflow does not allow the name or the alias.

    >>> registry = Registry("doctest")
    >>> registry.production() is None, registry.history()
    (True, [])
    """

    def __init__(
        self,
        name: str,
        alias: str = "production",
        client: Callable[[], MlflowClient] = connect,
        *,
        load: Callable[[Path], Any] | None = None,
        links: Callable[[Run | None, Mapping[str, str]], list[Link]] | None = None,
        tags: Sequence[str] = ("mlflow_gate.", COMMIT_TAG),
        decision: Path | str | None = None,
        time_limit: float = 600.0,
    ) -> None:
        if not isinstance(time_limit, int | float) or not 0 < time_limit <= threading.TIMEOUT_MAX:
            raise ConfigError("Invalid time limit.", value=time_limit, expected="a number of seconds greater than 0")
        self.name, self.alias, self.time_limit, self._tags = name, alias, time_limit, tuple(tags)
        self._client, self._read, self._decision_file = client, load, decision
        self._links = links or (lambda _run, _tags: [])
        self._connected: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """The client of the tracking server, created on first use.

        Raises ConfigError if MLflow does not allow the name or the alias, ServerError if the server is down.
        """
        if self._connected is None:
            _check_names(self.name, self.alias)
            self._connected = self._client()
        return self._connected

    def load(self, model_uri: str) -> Any:
        """Load a logged model (`models:/m-...`) or a version (`models:/NAME/3`) within the time limit."""
        return loading.load(model_uri, self._read, self.time_limit)

    def production(self, known: Production | None = None) -> Production | None:
        """Return the version in production, or None.

        ``known`` is the caller's last result, which is returned after a single request if the alias has not moved.
        """
        version = find(self.client.get_model_version_by_alias, self.name, self.alias)
        number = version and version.tags.get(record.LAST_TAG + self.alias)
        last = version and (str(version.version), record.model_source(version, self.client), number)
        if known and last == (known.version, known.source, str(known.move.number)):
            return known
        return self.describe(self.record()) if version else None

    def history(self, *, note: bool = False) -> list[Move]:
        """Return all moves of the alias, oldest first.

        With ``note``, record moves made by hand (as in MLflow's UI), so that a rollback can return to their versions.
        """
        moves = self.record().moves
        if note and not all(move.recorded for move in moves):
            with locked(self.client, self.name):
                moves = self._note_move_by_hand().moves
        return [replace(move, number=place) for place, move in enumerate(moves, start=1)]

    def status(self, decision: Path | str | None = None) -> str:
        """Return one line: the version in production, and whether this working tree's decision agrees with it.

        ``decision`` is a JSON file written from `Decision.as_dict`; the default is the registry's decision file.
        """
        read, decided = self.record(), read_decision(decision or self._decision_file)
        line = summarize(self.describe(read)) if read.version else f"{self.name}: no version is in production"
        if not read.version and read.moves:
            last = read.moves[-1]
            since = f", in production since {last.when}" if last.when else ""
            line += f": the alias was removed from version {last.version}{since}"
        if decided is None:
            return line
        former = (decided.get("production") or {}).get("version")
        then = f"; but {f'version {former}' if former else 'no version'} was in production then. Run the gate again."
        return f"{line}; this working tree's decision: {decided.get('reason')}{then * (former != read.current)}"

    def lineage(self, version: str | None = None) -> list[Link]:
        """Return the lineage of a version, given as `3` or `NAME/3`; by default, of the version in production.

        Raises ModelError if the version does not exist.
        """
        read, number = self.record(), (version or "").removeprefix(f"{self.name}/")
        is_number = number.isdecimal() and len(number) < 10  # a longer number causes a database error
        entry = find(self.client.get_model_version, self.name, number) if is_number else read.version
        if entry is None or (number and not is_number):
            what = f"Version {number} of {self.name} does not exist." if number else "No model is in production."
            raise ModelError(what, next_step=f"check `mlflow-gate history {self.name}`, or promote a model")
        described = self.describe(read, entry)
        model = described.evaluated
        links = [data_link(model.run, model.tags), commit_link(model.tags), *self._links(model.run, model.tags)]
        links.append(run_link(model.run, self._page(model.run), {"model": model.source}))
        if described.refit_of:
            facts = {"model": described.source} | data_link(described.run, described.tags).facts
            links.append(run_link(described.run, described.run_url, facts, "refit"))
        url = page(self.client, f"models/{self.name}/versions/{entry.version}")
        links.append(Link.of("model", str(described), {"version": described.version, "files": entry.source}, url))
        return [*links, *move_links(described.version, read.moves, read.current)]

    def rollback(self, to: str | None = None, why: str = "") -> Production:
        """Restore the previous version, or the version ``to``, and return it.

        The version must load before the alias moves. Each further rollback goes back one more version. The gate then
        blocks the model that was rolled back (see the README). Raises ModelError if the version does not exist, was
        never in production, or cannot be loaded; Conflict if the alias moves in the meantime.
        """
        provenance, read = record.provenance(why), self.record()
        exists = partial(find, self.client.get_model_version, self.name)
        target = record.rollback_target(to, read.moves, read.current, exists)
        try:
            self.load(f"models:/{self.name}/{target}")  # before taking the lock, because this may take minutes
        except ServerError:
            raise
        except Exception as error:
            what = f"Version {target} cannot be loaded: the alias was not moved."
            step = "choose another version from `mlflow-gate history`"
            raise ModelError(what, value=loading.describe_error(error), next_step=step) from error
        with locked(self.client, self.name) as check_lock:
            now = self.record()
            if now.current != read.current:
                value, was = (f"version {each}" if each else "no version" for each in (now.current, read.current))
                what, step = (
                    "The model in production has changed during the rollback.",
                    "check `mlflow-gate history`, then retry the rollback",
                )
                raise Conflict(what, value=value, expected=f"{was}, as before", next_step=step)
            last = {move.version: move for move in now.moves}[target]  # the dict keeps each version's last move
            action = record.ROLLED_BACK if target in record.promotion_path(now.moves) else record.RESTORED
            reason = f"{action}{f' from version {read.current}' if read.current else ''} to version {target}"
            move = replace(
                last, action=action, reason=reason, replaced_scores={}, findings=[], recorded=True, **provenance
            )
            return self.move(move, check_lock)

    def record(self) -> Record:
        """Read the history of the alias."""
        return Record(self.client, self.name, self.alias)

    def move(self, move: Move, check_lock: Callable[[], None] | None = None) -> Production:
        """Record a move and move the alias; the caller holds the lock, which ``check_lock`` verifies."""
        read = self._note_move_by_hand()
        replaced = read.moves[-1].version if read.moves else None
        move = replace(move, number=read.next_number, alias=self.alias, replaced=replaced)
        record.write(self.client, self.name, move, done=False)
        if check_lock:
            check_lock()
        self.client.set_registered_model_alias(self.name, self.alias, move.version)
        record.write(self.client, self.name, move, done=True)
        version = self.client.get_model_version(self.name, move.version)
        return self.describe(read.after(replace(move, recorded=True), version), version)

    def describe(self, read: Record, version: ModelVersion | None = None) -> Production:
        """Describe a version, by default the one at the alias or, if that is unset, the last one in the history."""
        number = str(version.version) if version else read.moves[-1].version
        version = version or read.version or find(self.client.get_model_version, self.name, number)
        last_move = read.last_move_to(number) or Move(0, record.BY_HAND, number)
        run_id, source = (
            (version.run_id or "", record.model_source(version, self.client))
            if version
            else (last_move.run_id, last_move.model_uri)
        )
        run, refit_of = self.find_run(run_id), None
        if last_move.model_uri not in ("", source):
            evaluated = self.find_run(last_move.run_id)
            tags = last_move.judged | (evaluated.data.tags if evaluated else {})
            refit_of = EvaluatedModel(last_move.run_id, last_move.model_uri, tags, last_move.model_uri, evaluated)
        return Production(
            run_id,
            f"models:/{self.name}/{number}" if version else source,
            last_move.run | (run.data.tags if run else {}),
            source,
            run,
            name=self.name,
            version=number,
            run_url=self._page(run),
            move=[last_move, *(move for move in read.moves if move.version == number)][-1],
            refit_of=refit_of,
            has_alias=read.version is not None,
        )

    def find_run(self, run_id: str | None) -> Run | None:
        """Return a run; None if it was purged or never existed (a version can outlive its run)."""
        return find(self.client.get_run, run_id) if run_id else None

    def version_of(self, source: str, read: Record, *, recorded: bool = False) -> ModelVersion | None:
        """Return the newest version that holds a model or its refit, or None; ``recorded``: search only the history."""
        versions = [] if recorded else self.client.search_model_versions(f"source_path='{source}'")
        matches, numbers = [each for each in versions if each.name == self.name], read.versions_of(source)
        evaluated = (find(self.client.get_model_version, self.name, number) for number in numbers)
        return max([*matches, *filter(None, evaluated)], key=lambda version: int(version.version), default=None)

    def kept_tags(self, run: Run | None) -> dict[str, str]:
        """Return the run tags to keep in the history, with long values truncated."""
        tags = run.data.tags.items() if run else ()
        return {name: value[:KEPT_CHARACTERS] for name, value in tags if name.startswith(self._tags)}

    def _page(self, run: Run | None) -> str:
        return page(self.client, f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}") if run else ""

    def _note_move_by_hand(self) -> Record:
        """Record moves made by hand or by processes killed before recording them; the caller holds the lock."""
        read = self.record()
        unrecorded = [move for move in read.moves if not move.recorded]
        for move in unrecorded:
            record.write(self.client, self.name, move, done=True)
        return self.record() if unrecorded else read


def _check_names(name: str, alias: str) -> None:
    """Raise ConfigError for a name or an alias that MLflow would reject only on the first write."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    try:
        validation._validate_model_name(name)
        validation._validate_model_alias_name(alias)
        # MLflow 3.1 lacks this function: the check above covers reserved names there.
        getattr(validation, "_validate_model_alias_name_reserved", str)(alias)
    except (MlflowException, TypeError) as error:
        expected = "a name without / or :; an alias of letters, digits, - and _, other than `latest` or `v1`"
        what = f"MLflow does not allow the model name {name!r} or the alias {alias!r:.60}."
        raise ConfigError(what, value=f"{error!s:.200}", expected=expected) from None


def summarize(production: Production) -> str:
    """Summarize the version in production in one line: last move, commit and score."""
    commit, branch = production.tags.get(COMMIT_TAG, "")[:10], production.move.run.get("branch")
    parts = [f"{production.move.action} {production.move.when or ''}".strip()]
    parts += [f"from commit {commit or 'unknown'}" + (f" (branch {branch})" if branch else "")]
    parts += ["with uncommitted changes" if is_dirty(production.tags) else ""]
    parts += [f"{production.move.label} {production.move.score}" if production.move.score else ""]
    return f"{production} is in production: " + ", ".join(filter(None, parts))
