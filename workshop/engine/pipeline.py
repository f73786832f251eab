"""Runs the pipeline with DVC and tells of each stage as it goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from workshop.errors import EngineError
from workshop.settings import Settings

STARTED = re.compile(r"^Running stage '(?P<stage>[^']+)'")
SKIPPED = re.compile(r"^Stage '(?P<stage>[^']+)' (didn't change|is cached)")
LOG_LINES = 40


def reproduce(settings: Settings, tell: Callable[[str], None]) -> list[str]:
    """Run `dvc repro` in the pipeline's folder and return the names of the stages that ran.

    ``tell`` gets a line for each stage as it ends, or as it is skipped; everything DVC, papermill and the
    notebooks print goes to the log `pipeline.log`. Raises EngineError with the end of that log when a stage fails.
    """
    settings.logs.mkdir(parents=True, exist_ok=True)
    log = settings.logs / "pipeline.log"
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | settings.exports()
    environment |= {"PATH": scripts + os.pathsep + environment.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1"}
    ran: list[str] = []
    current: tuple[str, float] | None = None

    def finish() -> None:
        if current is not None:
            tell(f"{current[0]}: {time.monotonic() - current[1]:.1f} s")

    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=settings.pipeline,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as dvc,
    ):
        for line in dvc.stdout:
            output.write(line)
            if started := STARTED.match(line):
                finish()
                current = (started["stage"], time.monotonic())
                ran.append(started["stage"])
            elif skipped := SKIPPED.match(line):
                finish()
                current = None
                tell(f"{skipped['stage']}: unchanged")
    if dvc.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise EngineError(
            f"The pipeline stopped{f' at {ran[-1]}' if ran else ''}.",
            value=f"the end of {log}:\n{last}",
            next_step="mend the cause, then run again: it goes on from that stage",
        )
    finish()
    return ran
