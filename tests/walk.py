"""A chapter's text as what an attendee types: its commands, block by block, in the folder where they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import yaml


class Block(NamedTuple):
    """A fenced block: the number of its step, its language (`bash` or `yaml`) and its text."""

    step: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return what is typed in the numbered steps (`### 1. ...`) of a chapter's page: commands, and parameters."""
    found = []
    steps = re.findall(r"^### (\d+)\. (.*?)(?=^###? |\Z)", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for number, text in steps:
        fences = re.findall(r"^ *```(bash|yaml)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
        found += [Block(int(number), language, block) for language, block in fences]
    return found


class Walk:
    """A shell that remembers where it is; ``typed`` holds what was typed, with what came back."""

    def __init__(self, folder: Path, environment: dict[str, str], seconds: float = 600):
        self.folder, self.environment, self.seconds = folder, environment, seconds
        self.here = folder
        self.typed: list[tuple[str, subprocess.CompletedProcess]] = []

    def follow(self, block: Block, *, exit_code: int = 0) -> str:
        """Type a block, or write its parameters into `params.yaml`; return what came back, both streams."""
        if block.language == "yaml":
            merge(self.folder / "params.yaml", yaml.safe_load(block.text))
            return ""
        script = f'set -e\n{block.text}\npwd > "$WALK_HERE"\n'
        note = self.folder.parent / ".walk"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.here, env=self.environment | {"WALK_HERE": str(note)}, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=self.seconds, check=False,
        )  # fmt: skip
        self.typed.append((block.text, done))
        output = done.stdout + done.stderr
        assert done.returncode == exit_code, f"{block.text}\n{output}"
        if not exit_code:
            self.here = Path(note.read_text().strip())
            note.unlink()
        return output


def merge(file: Path, changes: dict) -> None:
    """Write some parameters into a file of stages, each with its own."""
    content = yaml.safe_load(file.read_text())
    for stage, values in changes.items():
        content[stage] |= values
    file.write_text(yaml.safe_dump(content, sort_keys=False))
