"""Where the alias of a registered model points, and the record of its moves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from mlflow_gate import moves as record
from mlflow_gate.errors import Conflict, ServerError
from mlflow_gate.moves import Move
from mlflow_gate.turns import turn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

ANSWER_SECONDS = 3.0
EVIDENCE_TAG = "mlflow_gate.evidence"  # of a version that is a refit: the fields of its `Evidence` as JSON


@dataclass(frozen=True)
class Evidence:
    """The model that the gate judged, by its run and its address; ``tags`` are those of the run that the record keeps.

    It is the version's own model, or what was fitted on a part of the rows before the version was fitted on all.
    """

    run_id: str
    model_uri: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Production:
    """The version that the alias points at; ``move`` is the last move that brought it there.

    ``tags`` are those of its run, ``moves`` counts how often the version came into production. ``refit_of`` is the
    model that was judged, if the version is a refit of it.
    """

    name: str
    version: str
    run_id: str
    model_uri: str
    run_url: str = ""
    move: Move = field(default_factory=lambda: Move(0, record.BY_HAND, ""))
    tags: Mapping[str, str] = field(default_factory=dict)
    moves: int = 0
    refit_of: Evidence | None = None

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def evidence(self) -> Evidence:
        """The model that the gate judged."""
        return self.refit_of or Evidence(self.run_id, self.model_uri, self.tags)


@dataclass(frozen=True)
class Status:
    """Which version is in production, and whether the last decision in this tree says the same (None: no decision)."""

    line: str
    production: Production | None
    agrees: bool | None

    def __str__(self) -> str:
        return self.line


class Alias:
    """The alias of a registered model: what is in production, and how it came there.

    ``metric`` is the score that a run logged, for moves by hand, which have no other.
    """

    metric = ""

    def __init__(self, name: str, alias: str) -> None:
        self.name, self.alias = name, alias
        self._client: MlflowClient | None = None

    def connect(self) -> MlflowClient:
        """Return a client; raise ServerError within seconds when the tracking server does not answer."""
        import mlflow

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each few kilobytes
        uri = mlflow.get_tracking_uri()
        if uri.startswith(("http://", "https://")):
            import requests

            try:
                requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS)
            except requests.RequestException:
                raise ServerError(
                    "The MLflow tracking server does not answer.",
                    value=_without_password(uri),
                    expected=f"an answer within {ANSWER_SECONDS:g} s",
                    next_step="start it, or set MLFLOW_TRACKING_URI",
                ) from None
        return mlflow.MlflowClient(uri)

    @property
    def client(self) -> MlflowClient:
        """The client of the tracking server; made at the first use."""
        if self._client is None:
            self._client = self.connect()
        return self._client

    def production(self, known: Production | None = None) -> Production | None:
        """Return the version in production, or None when there is none.

        ``known`` is the last answer that the caller got: it is returned, after one request, if the alias has not moved.

        >>> Alias("doctest", "production").production() is None
        True
        """
        version = self.version_in_production()
        if version is None:
            return None
        number, moves = str(version.version), len(record.records_in([version], self.alias))
        if known is not None and (known.version, known.run_id, known.moves) == (number, version.run_id or "", moves):
            return known
        run = self.find_run(version.run_id)
        return Production(
            name=self.name,
            version=number,
            run_id=version.run_id or "",
            model_uri=self.uri_of(number),
            run_url=self.page(f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}") if run else "",
            move=self._complete(self._moves(number)[-1], run),
            tags=self.tags_of(version, run),
            moves=moves,
            refit_of=self.refit_of(version),
        )

    def version_in_production(self) -> ModelVersion | None:
        """Return the version that carries the alias, with its tags; None when there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(self.name, self.alias)
        except MlflowException as error:
            # The second is what MLflow says of an alias that the model does not have.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def uri_of(self, version: str) -> str:
        """Return a version's address; unlike the alias, it always leads to the same model."""
        return f"models:/{self.name}/{version}"

    def page(self, path: str) -> str:
        """Return the address of a page in MLflow's UI; empty for a store without a server."""
        uri = _without_password(self.client.tracking_uri)
        return f"{uri.rstrip('/')}/#/{path}" if uri.startswith(("http://", "https://")) else ""

    def find_run(self, run_id: str | None) -> Run | None:
        """Return a run; None when it was purged or never existed: a version has its own copy of the model."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id) if run_id else None
        except MlflowException as error:
            # INVALID_PARAMETER_VALUE: a version that was registered by hand may name anything as its run.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def tags_of(self, version: ModelVersion, run: Run | None) -> dict[str, str]:
        """Return the tags of a version's run, and those that the record kept in case the run was purged."""
        kept = [move.run for _, move, _ in record.records_in([version], self.alias)]
        return (kept[-1] if kept else {}) | (run.data.tags if run else {})

    def refit_of(self, version: ModelVersion) -> Evidence | None:
        """Return the model that was judged in place of a version, its refit; None for a version that is none."""
        try:
            return TypeAdapter(Evidence).validate_json(version.tags[EVIDENCE_TAG])
        except (KeyError, ValueError):
            return None

    def versions_of(self, run_id: str, model_uri: str | None = None) -> set[str]:
        """Return the versions that are a model of a run, or its refit: any model, or the one at an address."""
        numbers = set()
        for version in self._versions():
            evidence, fits = self.refit_of(version), {version.run_id: version.source}
            fits |= {evidence.run_id: evidence.model_uri} if evidence else {}
            if run_id in fits and model_uri in (None, fits[run_id]):
                numbers.add(str(version.version))
        return numbers

    def history(self) -> list[Move]:
        """Return all moves of the alias, oldest first; empty when nothing was ever in production.

        >>> Alias("doctest", "production").history()
        []
        """
        versions = self._versions()
        runs = {str(version.version): version.run_id for version in versions}
        return [
            move if move.scores else self._complete(move, self.find_run(runs.get(move.version)))
            for move in record.moves_in(versions, self._current(), self.alias)
        ]

    def note(self) -> Move | None:
        """Record a move of the alias by hand, for example in MLflow's UI, so that a rollback can return to it.

        Return that move; None when there is none, or when it is recorded already.
        """
        if all(move.recorded for move in self._moves(self._current())):
            return None
        with turn(self.client, self.name):
            return self._record_manual_move()

    # -- inside --------------------------------------------------------------------------------------------------------
    def _current(self) -> str | None:
        version = self.version_in_production()
        return str(version.version) if version else None

    def _versions(self) -> list[ModelVersion]:
        versions: list[ModelVersion] = []
        query, token = f"name='{self.name}'", None
        while True:
            page = self.client.search_model_versions(query, page_token=token)
            versions += page
            if not (token := page.token):
                return versions

    def _moves(self, current: str | None) -> list[Move]:
        return record.moves_in(self._versions(), current, self.alias)

    def _complete(self, move: Move, run: Run | None) -> Move:
        """Return a move with scores: a move by hand has only those that the version's run logged."""
        if move.scores or run is None:
            return move
        finite = {name: round(value, 6) for name, value in run.data.metrics.items() if math.isfinite(value)}
        return replace(move, scores=finite, metric=self.metric if self.metric in finite else "")

    def _record_manual_move(self) -> Move | None:
        """Write down a move that was made by hand; the caller has the turn."""
        for move in self._moves(self._current()):
            if not move.recorded:
                self._write(record.next_number(self._versions()), move, done=True)
                return move
        return None

    def move(self, move: Move, keep: Callable[[], None] | None = None) -> None:
        """Record a move and make it; the caller has the turn, of which ``keep`` makes sure."""
        self._record_manual_move()
        number, move = record.next_number(self._versions()), replace(move, alias=self.alias)
        self._write(number, move, done=False)
        if keep:
            keep()
        self.client.set_registered_model_alias(self.name, self.alias, move.version)
        self._write(number, move, done=True)

    def _write(self, number: int, move: Move, *, done: bool) -> None:
        tag = f"{record.MOVE_TAG}{number:06d}"
        self.client.set_model_version_tag(self.name, move.version, tag, record.text_of(move, done=done))

    def _check_unchanged(self, expected: Production | None) -> None:
        """Raise Conflict unless the alias is where it was when the decision was made."""
        before, after = expected.version if expected else None, self._current()
        if before != after:
            raise Conflict(
                "The model in production has changed since the decision.",
                value=f"version {after}" if after else "nothing",
                expected=f"version {before}, as before" if before else "nothing, as before",
                next_step="mlflow-gate history; then try again",
            )


def _without_password(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark and "@" in rest.partition("/")[0] else uri
