"""A registered model: which version is in production, the record of each move of the alias, and the way back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_gate import record, trial
from mlflow_gate.decision import read_decision
from mlflow_gate.errors import ConfigError, Conflict, ModelError, ServerError
from mlflow_gate.lineage import COMMIT_TAG, Link, commit_link, data_link, is_dirty, move_links, run_link
from mlflow_gate.record import EvaluatedModel, Move, Production, Record
from mlflow_gate.server import connect, find, page
from mlflow_gate.turns import turn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KEPT_CHARACTERS = 500  # of a run's tag, in the record


class Registry:
    """A registered model of an MLflow server, and the record of its alias.

    ``client()`` returns MLflow's client. ``load(folder)`` returns the model in a folder of files, by default by
    `mlflow.pyfunc`, in a thread of its own, within ``time_limit`` seconds. ``links(run, tags)`` returns further links
    of a lineage. ``tags`` are the prefixes of those tags of a run that the record keeps in case the run is purged.
    ``decision`` is the file with the last decision of this tree.

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
            raise ConfigError("The time limit cannot be used.", value=time_limit, expected="seconds, more than 0")
        self.name, self.alias, self.time_limit, self._tags = name, alias, time_limit, tuple(tags)
        self._client, self._read, self._decision_file = client, load, decision
        self._links = links or (lambda _run, _tags: [])
        self._connected: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """The client of the tracking server, made at the first use.

        Raises ConfigError for a name or an alias that MLflow refuses, ServerError when the server is down.
        """
        if self._connected is None:
            _check_names(self.name, self.alias)
            self._connected = self._client()
        return self._connected

    def load(self, model_uri: str) -> Any:
        """Load a model, of a run (`models:/m-...`) or of a version, within the time limit; raise what says why not."""
        return trial.load(model_uri, self._read, self.time_limit)

    def production(self, known: Production | None = None) -> Production | None:
        """Return the version in production, or None when there is none.

        ``known`` is the last answer that the caller got: it is returned, after one request, if the alias has not moved.
        """
        version = find(self.client.get_model_version_by_alias, self.name, self.alias)
        number = version and version.tags.get(record.LAST_TAG + self.alias)
        last = version and (str(version.version), record.source_of(version, self.client), number)
        if known and last == (known.version, known.source, str(known.move.number)):
            return known
        return self.describe(self.record()) if version else None

    def history(self, *, note: bool = False) -> list[Move]:
        """Return all moves of the alias, oldest first; empty when nothing was ever in production.

        With ``note`` a move by hand, for example in MLflow's UI, is written down, so that a rollback can return to it.
        """
        moves = self.record().moves
        if note and not all(move.recorded for move in moves):
            with turn(self.client, self.name):
                moves = self._note_move_by_hand().moves
        return [replace(move, number=place) for place, move in enumerate(moves, start=1)]

    def status(self, decision: Path | str | None = None) -> str:
        """Return in a line what is in production, and whether this tree's decision says the same.

        ``decision`` is the file of a `Decision` as JSON, by default the one of this registry.
        """
        read, decided = self.record(), read_decision(decision or self._decision_file)
        line = line_of(self.describe(read)) if read.version else f"{self.name}: nothing is in production"
        if not read.version and read.moves:
            last = read.moves[-1]
            since = f", in production since {last.when}" if last.when else ""
            line += f": the alias was removed from version {last.version}{since}"
        if decided is None:
            return line
        named = (decided.get("production") or {}).get("version")
        then = f"; but {f'version {named}' if named else 'nothing'} was in production then. Run the gate again."
        return f"{line}; this tree's decision: {decided.get('reason')}{then * (named != read.current)}"

    def lineage(self, version: str | None = None) -> list[Link]:
        """Return where a version (`3`, `NAME/3`) comes from, link by link; by default the one in production.

        Raises ModelError when there is no such version.
        """
        read, number = self.record(), (version or "").removeprefix(f"{self.name}/")
        is_number = number.isdecimal() and len(number) < 10  # more is an error of the database
        entry = find(self.client.get_model_version, self.name, number) if is_number else read.version
        if entry is None or (number and not is_number):
            what = f"There is no version {number} of {self.name}." if number else "No model is in production."
            raise ModelError(what, next_step=f"mlflow-gate history {self.name}; or promote a model")
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
        """Bring back what was in production before, or the version ``to``; return what is now in production.

        The version is loaded first. Each rollback goes one step further back. The gate refuses the model that was in
        production from then on (see the README). Raises ModelError when there is no such version, it never was in
        production, or it cannot be loaded; Conflict when the alias moves meanwhile.
        """
        signed, read = record.provenance(why), self.record()
        exists = partial(find, self.client.get_model_version, self.name)
        target = record.target_of(to, read.moves, read.current, exists)
        try:
            self.load(f"models:/{self.name}/{target}")  # may take minutes, so before the turn
        except ServerError:
            raise
        except Exception as error:
            what = f"Version {target} cannot be loaded: the alias was not moved."
            step = "mlflow-gate history; roll back to another"
            raise ModelError(what, value=trial.trouble_of(error), next_step=step) from error
        with turn(self.client, self.name) as keep:
            now = self.record()
            if now.current != read.current:
                value, was = (f"version {each}" if each else "nothing" for each in (now.current, read.current))
                what, step = "The model in production has changed meanwhile.", "mlflow-gate history; try again"
                raise Conflict(what, value=value, expected=f"{was}, as before", next_step=step)
            last = {move.version: move for move in now.moves}[target]  # that brought this version
            action = record.ROLLED_BACK if target in record.line_of(now.moves) else record.RESTORED
            reason = f"{action}{f' from version {read.current}' if read.current else ''} to version {target}"
            move = replace(last, action=action, reason=reason, replaced_scores={}, findings=[], recorded=True, **signed)
            return self.move(move, keep)

    def record(self) -> Record:
        """Read the record of the alias."""
        return Record(self.client, self.name, self.alias)

    def move(self, move: Move, keep: Callable[[], None] | None = None) -> Production:
        """Record a move and make it; the caller has the `turn`, of which ``keep`` makes sure."""
        read = self._note_move_by_hand()
        replaced = read.moves[-1].version if read.moves else None
        move = replace(move, number=read.next_number, alias=self.alias, replaced=replaced)
        record.write(self.client, self.name, move, done=False)
        if keep:
            keep()
        self.client.set_registered_model_alias(self.name, self.alias, move.version)
        record.write(self.client, self.name, move, done=True)
        return self.production()  # type: ignore[return-value] # the alias was just set

    def describe(self, read: Record, version: ModelVersion | None = None) -> Production:
        """Return a version; by default that of the alias, or without it the last of the record, deleted or not."""
        number = str(version.version) if version else read.moves[-1].version
        version = version or read.version or find(self.client.get_model_version, self.name, number)
        kept = read.of(number) or Move(0, record.BY_HAND, number)
        run_id, source = (
            (version.run_id or "", record.source_of(version, self.client)) if version else (kept.run_id, kept.model_uri)
        )
        run, refit_of = self.find_run(run_id), None
        if kept.model_uri not in ("", source):
            judged = self.find_run(kept.run_id)
            tags = kept.judged | (judged.data.tags if judged else {})
            refit_of = EvaluatedModel(kept.run_id, kept.model_uri, tags, kept.model_uri, judged)
        return Production(
            run_id,
            f"models:/{self.name}/{number}" if version else source,
            kept.run | (run.data.tags if run else {}),
            source,
            run,
            name=self.name,
            version=number,
            run_url=self._page(run),
            move=[kept, *(move for move in read.moves if move.version == number)][-1],
            refit_of=refit_of,
            has_alias=read.version is not None,
        )

    def find_run(self, run_id: str | None) -> Run | None:
        """Return a run; None when it was purged or never existed: a version has its own copy of the model."""
        return find(self.client.get_run, run_id) if run_id else None

    def version_of(self, source: str, *, recorded: bool = False) -> ModelVersion | None:
        """Return the last version of a model, or of its refit; None without one, or without a ``recorded`` one."""
        made = [] if recorded else self.client.search_model_versions(f"source_path='{source}'")
        named, numbers = [each for each in made if each.name == self.name], self.record().versions_of(source)
        judged = (find(self.client.get_model_version, self.name, number) for number in numbers)
        return max([*named, *filter(None, judged)], key=lambda version: int(version.version), default=None)

    def kept_tags(self, run: Run | None) -> dict[str, str]:
        """Return those tags of a run that the record keeps."""
        tags = run.data.tags.items() if run else ()
        return {name: value[:KEPT_CHARACTERS] for name, value in tags if name.startswith(self._tags)}

    def _page(self, run: Run | None) -> str:
        return page(self.client, f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}") if run else ""

    def _note_move_by_hand(self) -> Record:
        """Write down a move by hand, or one whose process was killed before it said so; the caller has the turn."""
        for move in self.record().moves:
            if not move.recorded:
                record.write(self.client, self.name, move, done=True)
        return self.record()


def _check_names(name: str, alias: str) -> None:
    """Raise ConfigError for a name or an alias that MLflow would refuse only when it is written."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    try:
        validation._validate_model_name(name)
        validation._validate_model_alias_name(alias)
        # In MLflow 3.1 the check above knows the reserved names, too.
        getattr(validation, "_validate_model_alias_name_reserved", str)(alias)
    except (MlflowException, TypeError) as error:
        expected = "a name without / and :; an alias of letters, digits, - and _, which is not `latest` or like `v1`"
        what = f"MLflow refuses the model {name!r} or its alias {alias!r:.60}."
        raise ConfigError(what, value=f"{error!s:.200}", expected=expected) from None


def line_of(now: Production) -> str:
    """Return what is in production, which move brought it and from where, for a person."""
    commit, branch = now.tags.get(COMMIT_TAG, "")[:10], now.move.run.get("branch")
    parts = [f"{now.move.action} {now.move.when or ''}".strip()]
    parts += [f"from commit {commit or 'unknown'}" + (f" (branch {branch})" if branch else "")]
    parts += ["with uncommitted changes" if is_dirty(now.tags) else ""]
    parts += [f"{now.move.label} {now.move.score}" if now.move.score else ""]
    return f"{now} is in production: " + ", ".join(filter(None, parts))
