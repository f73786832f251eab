"""An attendee: a small repository, a tracking store, and the checkpoints of both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workplace import ROOT, git

from workshop.settings import Settings
from workshop.teaching.checkpoints import Checkpoint, examine, state_of


def new_repository(root: Path, *names: str) -> Path:
    """Return a repository in which these files of this tree are committed."""
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
    """An attendee with a repository and an empty tracking store."""

    root: Path
    client: object
    known: set[str] = field(default_factory=set)  # steps that were done at the last check

    @property
    def settings(self) -> Settings:
        """The settings as the attendee's programs see them."""
        return Settings()

    def steps(self) -> dict[str, Checkpoint]:
        """Return the current state of all steps, by title."""
        return {checkpoint.title: checkpoint for checkpoint in examine(state_of(self.settings))}

    def ticked(self) -> set[str]:
        """Return the titles of the steps that are done."""
        return {title for title, checkpoint in self.steps().items() if checkpoint.done}

    @contextlib.contextmanager
    def ticks(self, *titles: str) -> Iterator[None]:
        """Check that the block completes these steps, and no others."""
        yield
        before, self.known = self.known, self.ticked()
        ticked = self.known - before
        assert ticked == set(titles), ticked
