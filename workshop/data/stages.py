"""A pipeline stage as `dvc.yaml` declares it: the one place that knows where its inputs and outputs lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from workshop.errors import EngineError
from workshop.settings import get_settings


class Stage:
    """The declared inputs and outputs of one stage, asked for by file name.

    Reads ``dvc.yaml`` in the current folder, where DVC runs a stage; else, as in a notebook opened in
    JupyterLab, in the pipeline's folder.
    """

    def __init__(self, name: str) -> None:
        here = Path.cwd()
        self.name = name
        self.folder = here if (here / "dvc.yaml").exists() else get_settings().pipeline
        file = self.folder / "dvc.yaml"
        try:
            stages = yaml.safe_load(file.read_text())["stages"]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise EngineError(f"{file} declares no stages.", value=repr(error)) from None
        if name not in stages:
            raise EngineError(f"{file} has no stage `{name}`.", expected=", ".join(stages))
        self._inputs = self._by_name(stages[name].get("deps", []))
        outputs = [entry for kind in ("outs", "metrics") for entry in stages[name].get(kind, [])]
        self._outputs = self._by_name(outputs)

    def _by_name(self, entries: list) -> dict[str, Path]:
        # An entry is a path, or a mapping from a path to its flags.
        paths = [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]
        return {path.name: self.folder / path for path in paths}

    def input(self, name: str) -> Path:
        """Return the path of a declared dependency, such as ``train.parquet``."""
        return self._find(self._inputs, name, "deps")

    def output(self, name: str) -> Path:
        """Return the path of a declared output, its folder made."""
        path = self._find(self._outputs, name, "outs")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_json(self, name: str) -> Any:
        """Return the content of a declared JSON dependency."""
        return json.loads(self.input(name).read_text())

    def write_json(self, name: str, content: Any) -> None:
        """Write a declared JSON output, keys in the order given."""
        self.output(name).write_text(json.dumps(content, indent=1) + "\n")

    def _find(self, declared: dict[str, Path], name: str, kind: str) -> Path:
        try:
            return declared[name]
        except KeyError:
            raise EngineError(
                f"The stage `{self.name}` does not declare {name} among its {kind}.",
                expected=", ".join(declared) or "nothing",
                next_step=f"add it to {self.folder / 'dvc.yaml'}",
            ) from None
