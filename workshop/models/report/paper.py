"""A page on paper: PDF, printed by a Chromium on this machine if there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from workshop.errors import ServiceError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
PRINT_SECONDS = 60
LONGEST_FOLDER = 40  # characters: Chromium makes a socket some folders below, whose path may have 107
OPTIONS = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-pdf-header-footer",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network, whatever the page says
)  # fmt: skip


def browser() -> str | None:
    """Return the program that can print; None when this machine has none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def pdf(html: str) -> bytes | None:
    """Return a page as PDF; None when this machine has no browser. Raises ServiceError when the browser fails.

    All that it writes lies in a temporary folder that goes when it ends.
    """
    program = browser()
    if program is None:
        return None
    # A browser that was ended in a hurry may still write to its profile while that is removed.
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_FOLDER else "/tmp"  # noqa: S108 - random name
    with tempfile.TemporaryDirectory(prefix="workshop-print-", dir=place, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        page, printed = folder / "page.html", folder / "page.pdf"
        page.write_text(html, encoding="utf-8")
        # Chromium refuses to run as root inside its sandbox. The page is our own, and its policy forbids scripts.
        options = [*OPTIONS, *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else [])]
        command = [program, *options, f"--user-data-dir={folder}/profile", f"--print-to-pdf={printed}", page.as_uri()]
        environment = os.environ | dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), name)
        try:
            subprocess.run(command, env=environment, capture_output=True, timeout=PRINT_SECONDS, check=True)
            return printed.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise ServiceError(
                "The browser did not print the page.",
                value=f"{program}: {_why(error)}",
                expected=f"a PDF within {PRINT_SECONDS} s",
                next_step="print the HTML file from any browser, or make the report with --no-pdf",
            ) from None


def _why(error: Exception) -> str:
    """Return what the browser itself says is fatal, among much else that it says, or how it ended."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or b"").decode(errors="replace").splitlines()
        return next((line for line in lines if ":FATAL:" in line), f"exit code {error.returncode}")
    return "not done in time" if isinstance(error, subprocess.TimeoutExpired) else "no file was written"
