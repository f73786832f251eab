"""Helpers to use a room as people do: with a browser on a laptop, and by typing commands."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from browsing import chromium
from machines import Machine, network
from playwright.sync_api import Page, expect
from workplace import ROOT

PEOPLE = ["ada", "boole", "curie", "dirac", "euler"]
ADDRESS = "https://10.98.1.1:8443"  # of the machine, as `machines.connect` gives it
BOARD = f"{ADDRESS}/services/board/"
LAB_SECONDS = 180
SCRIPTS = "/opt/workshop/server/room"
SUPERVISOR = f"/opt/workshop/.venv/bin/supervisorctl --configuration {SCRIPTS}/supervisord.conf"


def rows(page: Page) -> dict[str, str]:
    """Return each person's row of the board."""
    page.goto(BOARD)
    return {row.split("\t")[0].strip(): row for row in page.locator("tr").all_inner_texts()[1:]}


@dataclass
class Room:
    """The room's machine, the laptop, and the people's passwords."""

    server: Machine
    laptop: Machine  # a browser aborts its requests when a network is added to its own machine
    passwords: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def page(self, name: str, address: str = ADDRESS) -> Iterator[Page]:
        """Yield a browser page in which a person has logged in; all host names resolve to the machine."""
        with network(self.laptop.pid), chromium("--host-resolver-rules=MAP * 10.98.1.1") as browser:
            page = browser.new_context(ignore_https_errors=True).new_page()
            page.goto(address)
            page.fill("#username_input", name)
            page.fill("#password_input", self.passwords[name])
            page.click("#login_submit")
            yield page

    def post(self, path: str, cookies=None, source="10.98.1.2", address=ADDRESS, **form: str) -> httpx.Response:
        """Submit a page's form from an address of the laptop, with cookies of a response; do not follow redirects."""
        transport = httpx.HTTPTransport(verify=False, local_address=source)
        forged = {"X-Real-Ip": f"192.0.2.{secrets.randbelow(256)}"}
        options = {"transport": transport, "cookies": cookies, "headers": forged, "timeout": 60}
        with network(self.laptop.pid), httpx.Client(**options) as client:
            client.get(address + path)
            return client.post(address + path, data={"_xsrf": client.cookies["_xsrf"], **form})

    def log_in(self, name: str, password: str = "", **options) -> httpx.Response:
        """Submit the log-in form."""
        return self.post("/hub/login", username=name, password=password or self.passwords[name], **options)

    def types(self, name: str, text: str, **options) -> subprocess.CompletedProcess:
        """Run a command as a person, in the person's network and clone."""
        command = self.server.command(f"{SCRIPTS}/person.sh", "run", name, "sh", "-c", text)
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def answers(self, name: str, port: int) -> bool:
        """Return whether a person's server answers."""
        return self.types(name, f"curl --fail --silent http://127.0.0.1:{port}/health").returncode == 0

    def open_lab(self, name: str) -> float:
        """Log in and wait for JupyterLab's start page; return the seconds that it took."""
        start = time.monotonic()
        with self.page(name) as page:
            expect(page.get_by_role("heading", name="From a messy notebook")).to_be_visible(timeout=LAB_SECONDS * 1000)
        return time.monotonic() - start

    def set_up(self, *options: str) -> str:
        """Run setup.sh with the tests' port; return its output."""
        return self.server.run(f"{ROOT}/server/room/setup.sh {' '.join(options)} --port 8443")
