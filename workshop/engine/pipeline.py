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


def reproduce(settings: Settings, write: Callable[[str], object]) -> list[str]:
    """Run `dvc repro` in the pipeline's folder and return the names of the stages that ran.

    ``write`` gets a stage's name when it starts and its seconds when it ends, a line in all; everything that DVC,
    papermill and the notebooks print goes to the log `pipeline.log`. Raises EngineError with the end of that log when
    a stage fails.
    """
    settings.logs.mkdir(parents=True, exist_ok=True)
    log = settings.logs / "pipeline.log"
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | settings.exports()
    environment |= {"PATH": scripts + os.pathsep + environment.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1"}
    ran: list[str] = []
    current: float | None = None

    def finish() -> None:
        if current is not None:
            write(f"{time.monotonic() - current:.1f} s\n")

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
                current = time.monotonic()
                ran.append(started["stage"])
                write(f"  {started['stage']}: ")
            elif skipped := SKIPPED.match(line):
                finish()
                current = None
                write(f"  {skipped['stage']}: unchanged\n")
    if dvc.returncode:
        write("failed\n" if current is not None else "")
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise EngineError(
            f"The pipeline stopped{f' at {ran[-1]}' if ran else ''}.",
            value=f"the end of {log}:\n{last}",
            next_step="mend the cause, then run again: it goes on from that stage",
        )
    finish()
    return ran
