"""The files of the pipeline: the ones that a stage declares, and how a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from workshop.errors import DataError, EngineError
from workshop.parameters import STAGES, check
from workshop.settings import get_settings


class Stage:
    """The parameters of one stage, and its declared inputs and outputs, by file name.

    ``variables`` are a notebook's (`globals()`): of them, those that the stage's section of params.yaml names become
    ``parameters``, checked. Files are looked up in ``dvc.yaml`` in the current folder, where DVC runs a stage, or in
    the pipeline's folder, as for a notebook opened in JupyterLab.
    """

    def __init__(self, name: str, variables: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.parameters: dict[str, Any] = {}
        if variables is not None:
            values = {key: variables[key] for key in STAGES[name].model_fields if key in variables}
            self.parameters = check(name, values).model_dump()
        self.folder = get_settings().pipeline
        file = self.folder / "dvc.yaml"
        try:
            stages = yaml.safe_load(file.read_text())["stages"]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise EngineError(f"{file} declares no stages.", value=repr(error)) from None
        if name not in stages:
            raise EngineError(f"{file} has no stage `{name}`.", expected=", ".join(stages))
        self._declared = {kind: self._paths(stages[name].get(kind, [])) for kind in ("deps", "outs", "metrics")}

    def _paths(self, entries: list) -> dict[str, Path]:
        # An entry is a path, or a mapping from a path to its flags.
        paths = [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]
        return {path.name: self.folder / path for path in paths}

    def input(self, name: str) -> Path:
        """Return the path of a declared dependency, such as ``train.parquet``."""
        return self._find(name, "deps")

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


# -- any file ----------------------------------------------------------------------------------------------------------
def write_whole(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` and return the path; raise DataError (disk full, folder not writable)."""
    with _whole(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def copy_whole(source: Path, path: Path) -> Path:
    """Copy a file of any size to ``path`` and return the path; raise DataError as `write_whole`."""
    with _whole(path) as temporary:
        shutil.copyfile(source, temporary)
    return Path(path)


def checksum(path: Path) -> str:
    """Return the sha256 of a file of any size."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; give the file there its name when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"The file {path} could not be written.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step=f"free some space or change the rights of {path.parent}, then run the same again",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
