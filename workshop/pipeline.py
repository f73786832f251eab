"""A stage as its notebook sees it: checked parameters, the files that dvc.yaml declares, its code."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from papermill_dask import git_state
from papermill_dask.tracking import TASK_VARIABLE

from workshop import fingerprint
from workshop.errors import EngineError
from workshop.parameters import STAGES, Section, check
from workshop.settings import MLFLOW_RETRIES, get_settings


class Stage:
    """The parameters of one stage, and its declared inputs and outputs, by file name.

    ``variables`` are a notebook's (`globals()`): of them, those that the stage's section of params.yaml names become
    ``parameters``, checked. Files are looked up in ``dvc.yaml`` in the current folder, where DVC runs a stage, or in
    the pipeline's folder, as for a notebook opened in JupyterLab. ``code`` is what it imports of this package; on a
    Dask worker it must be that with which the pipeline began, or EngineError is raised.
    """

    parameters: Section

    def __init__(self, name: str, variables: Mapping[str, Any] | None = None) -> None:
        self.name = name
        if variables is not None:
            values = {key: variables[key] for key in STAGES[name].model_fields if key in variables}
            self.parameters = check(name, values)
        self.folder = get_settings().pipeline
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = MLFLOW_RETRIES  # nobody waits at this terminal
        stages = fingerprint.stages(self.folder)
        if name not in stages:
            raise EngineError(f"{self.folder / 'dvc.yaml'} has no stage `{name}`.", expected=", ".join(stages))
        self._declared = {kind: self._paths(stages[name].get(kind, [])) for kind in ("deps", "outs", "metrics")}
        self.code = fingerprint.code_of(stages[name], self.folder)
        if TASK_VARIABLE in os.environ:
            self._check_code()

    def _paths(self, entries: list) -> dict[str, Path]:
        # An entry is a path, or a mapping from a path to its flags.
        paths = [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]
        return {path.name: self.folder / path for path in paths}

    def _check_code(self) -> None:
        """Raise EngineError when the code of this worker is not the client's."""
        path = self._declared["deps"].get(fingerprint.FILE.format(self.name))
        if path is None or (expected := path.read_text()) == self.code:
            return
        others = {line.split()[-1] for line in {*self.code.splitlines()} ^ {*expected.splitlines()}}
        commit, _ = git_state() or ("", [])
        raise EngineError(
            f"The worker on {socket.gethostname()} has other code than the pipeline began with.",
            value=f"{fingerprint.fingerprint(self.code)} (commit {_own_commit()[:10] or 'unknown'}); "
            f"other: {', '.join(sorted(others))}",
            expected=f"{fingerprint.fingerprint(expected)} (commit {commit[:10] or 'unknown'})",
            next_step="bring the same code to all workers; if you changed it just now, run the pipeline again",
        )

    def input(self, name: str) -> Path:
        """Return the path of a declared dependency, such as ``train.parquet``."""
        return self._find(name, "deps")

    def inputs(self, pattern: str) -> list[Path]:
        """Return the paths of the declared dependencies whose names match, such as ``*.json``, as dvc.yaml has them."""
        return [path for path in self._declared["deps"].values() if path.match(pattern)]

    def output(self, name: str) -> Path:
        """Return the path of a declared output; its folder is made."""
        path = self._find(name, "outs", "metrics")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_json(self, name: str) -> Any:
        """Return the content of a declared JSON dependency."""
        return json.loads(self.input(name).read_text())

    def write_json(self, name: str, content: Any) -> None:
        """Write a declared JSON output, keys in the order given."""
        self.output(name).write_text(json.dumps(content, indent=1) + "\n")

    def _find(self, name: str, *kinds: str) -> Path:
        declared = {file: path for kind in kinds for file, path in self._declared[kind].items()}
        if name not in declared:
            raise EngineError(
                f"The stage `{self.name}` does not declare {name} among its {kinds[0]}.",
                expected=", ".join(declared) or "nothing",
                next_step=f"add it to {self.folder / 'dvc.yaml'}",
            )
        return declared[name]


def _own_commit() -> str:
    """Return the commit of the code on this machine; on a worker `git_state` knows that of the client."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(fingerprint.ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""
