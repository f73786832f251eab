"""An attendee: a small repository, a tracking store, and what the checkpoints say of both."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workplace import ROOT

from workshop.settings import Settings
from workshop.teaching.checkpoints import Checkpoint, gather, look


def git(folder: Path, *words: str) -> str:
    """Run git in a folder as somebody, and return what it prints."""
    who = {f"GIT_{role}_{name}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *words], cwd=folder, env=os.environ | who, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def new_repository(root: Path, *names: str) -> Path:
    """Return a repository with these files of this tree, committed."""
    for name in ("pyproject.toml", ".gitignore", *names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "4_pipeline").mkdir(exist_ok=True)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "A start")
    return root


@dataclass
class Attendee:
    """Somebody with a repository and an empty tracking store."""

    root: Path
    client: object

    @property
    def settings(self) -> Settings:
        """The settings as a program of the attendee's sees them."""
        return Settings()

    def steps(self) -> dict[str, Checkpoint]:
        """Return all steps by their titles, looked at now."""
        return {checkpoint.title: checkpoint for checkpoint in look(gather(self.settings))}

    def ticked(self) -> set[str]:
        """Return the titles of the steps that are done."""
        return {title for title, checkpoint in self.steps().items() if checkpoint.done}

    @contextlib.contextmanager
    def ticks(self, *titles: str) -> Iterator[None]:
        """Check that what happens in the block ticks these steps, and no other."""
        before = self.ticked()
        yield
        assert self.ticked() - before == set(titles)
