"""What lies on the disk: data, notebooks as they were saved, what the pipeline left, experiments and remotes of DVC."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

EXPERIMENTS = "refs/exps/??/*/*"  # https://github.com/iterative/dvc: refs/exps/<two of the commit>/<the rest>/<name>
GIT_SECONDS = 10


@dataclass(frozen=True)
class Saved:
    """A notebook as it was saved: its code cells that are not empty, those that ran, and those that failed."""

    cells: int
    executed: int
    failed: int

    @property
    def whole(self) -> bool:
        """Whether every cell ran, and none failed."""
        return 0 < self.cells == self.executed and not self.failed


@dataclass(frozen=True)
class Remote:
    """The remote that `dvc push` takes; ``holds`` of ``wanted`` files are there, None where nobody can look."""

    name: str
    url: str
    holds: int | None = None
    wanted: int = 0


@dataclass(frozen=True)
class Pipeline:
    """What the pipeline left here: stages that never ran, outputs that are missing, the tracking store it logged to."""

    absent: tuple[str, ...] = ()
    store: str | None = None
    experiments: tuple[str, ...] = ()
    remote: Remote | None = None


def read_notebook(file: Path) -> Saved | None:
    """Return how a notebook was saved; None when it is not there, or is none."""
    try:
        cells = json.loads(file.read_bytes())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        failed = [
            cell for cell in code
            if any(output["output_type"] == "error" for output in cell["outputs"])
            and "raises-exception" not in cell["metadata"].get("tags", ())
        ]  # fmt: skip
        return Saved(len(code), sum(cell["execution_count"] is not None for cell in code), len(failed))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_pipeline(root: Path, folder: Path) -> Pipeline:
    """Look at the pipeline in ``folder`` of the repository ``root``."""
    lock = _read_lock(folder / "dvc.lock")
    outs = [out for stage in lock.values() for out in stage.get("outs", [])]
    absent = tuple(out["path"] for out in outs if not (folder / out["path"]).exists())
    return Pipeline(
        absent=absent if outs else ("dvc.lock",),
        store=_read_store_id(folder / "data" / "tracking_store.json"),
        experiments=tuple(_experiments(root)),
        remote=_find_remote(root / ".dvc", [out.get("md5", "") for out in outs]),
    )


def _read_lock(file: Path) -> dict[str, dict]:
    import yaml

    try:
        loaded = yaml.safe_load(file.read_bytes())
        return {name: stage for name, stage in loaded["stages"].items() if isinstance(stage, dict)}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def _read_store_id(file: Path) -> str | None:
    try:
        return json.loads(file.read_text())["store_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _experiments(root: Path) -> list[str]:
    command = ["git", "for-each-ref", "--format=%(refname:lstrip=4)", EXPERIMENTS]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def _find_remote(dvc: Path, hashes: list[str]) -> Remote | None:
    """Return DVC's default remote, or the only one; a local folder is looked into for these files."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([dvc / "config", dvc / "config.local"])
    except (configparser.Error, ValueError):
        return None
    remotes = {
        named[1]: config[section]["url"]
        for section in config.sections()
        if (named := re.fullmatch(r"'?remote \"(.+)\"'?", section)) and "url" in config[section]
    }
    name = config.get("core", "remote", fallback=next(iter(remotes), ""))
    if name not in remotes:
        return None
    url = urlparse(remotes[name])
    if url.scheme not in ("", "file"):
        return Remote(name, remotes[name])
    folder = dvc / url.path / "files" / "md5"
    wanted = [each for each in hashes if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", each)]
    return Remote(name, remotes[name], sum((folder / each[:2] / each[2:]).exists() for each in wanted), len(wanted))
