"""The MLflow runs of many notebooks, under one parent."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop.models.tracking import end_runs, notebook_tags, open_parent, record_notebook, under_parent

if TYPE_CHECKING:
    from distributed import Client

ANSWER_SECONDS = 120  # an upload over a slow network; a server that is dead is noticed sooner


class Records:
    """Makes and ends runs on workers: they keep MLflow imported, which a fresh process takes over a second for.

    ``status`` is what the parent ends as; it is to be set when all went another way than KILLED.
    """

    def __init__(self, client: Client, notebook: Path, uri: str) -> None:
        self._client, self._uri = client, uri
        self._tags = notebook_tags(notebook)
        self.parent = ""
        self.status = "KILLED"

    @contextlib.contextmanager
    def under(self, name: str, parameters: dict[str, Any], tags: dict[str, str]) -> Iterator[None]:
        """Open the parent, and put under it the runs of all notebooks that are started meanwhile; end it."""
        self.parent = self._do(open_parent, name, parameters, self._tags | tags)
        try:
            with under_parent(self.parent, self._uri):
                yield
        finally:
            if self._client.status == "running":
                self._do(end_runs, [self.parent], self.status)
            else:  # the cluster is lost
                end_runs([self.parent], self.status, self._uri)

    def record(self, task: str, executed: Path, **ended: Any) -> tuple[list[str], dict[str, float]]:
        """Return ids and metrics of the runs of an executed notebook; see `tracking.record_notebook` for ``ended``."""
        notebook = json.loads(executed.read_bytes())
        return self._do(record_notebook, task, self.parent, notebook, executed.name, tags=self._tags, **ended)

    def _do(self, function: Callable, *arguments: Any, **keywords: Any) -> Any:
        future = self._client.submit(function, *arguments, **keywords, uri=self._uri, pure=False, retries=0)
        return future.result(ANSWER_SECONDS)
