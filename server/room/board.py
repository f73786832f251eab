"""The instructor's page, a service of the hub: a row for each person with the current step and its start time."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlparse

import psutil
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from people import INSTRUCTOR, MAX_BODY_BYTES, PERSON, CommandError, run
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from tornado.escape import xhtml_escape
from tornado.httpclient import AsyncHTTPClient
from tornado.httpclient import HTTPError as HubError
from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, RequestHandler, authenticated

CHECK_SECONDS = 300  # minimum interval for each person; a check takes two to three CPU seconds
QUIET_SECONDS = 60  # no checks right after a log-in, since many people log in at once
IDLE_SECONDS = 1200  # idle time after which the servers of chapter 4 are stopped
DISK_SECONDS = 300
DEADLINE = 120
CHECKS = asyncio.Semaphore(3)  # maximum of concurrent checks; a hanging check blocks one slot until its deadline
PREFIX = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
FOLDERS = map(Path, ("/var/lib/workshop-room", "/home"))
DISKS = [*{folder.stat().st_dev: folder for folder in FOLDERS}.values()]  # one folder per file system
RESERVE = ".workshop-room-reserve"
LOW_BYTES, LOW_FILES = 300_000_000, 5_000  # free bytes and inodes that log-ins need
MIN_GROWTH = 0.3  # smallest growth of `Person.usage` that is flagged
# Print a notebook's sources and text outputs, ignoring the person's configuration.
PRINT = f"JUPYTER_NO_CONFIG=1 exec {sys.executable} -I -m nbconvert --stdout --to=markdown --log-level=ERROR"
NOTEBOOK = ("sh", "-c", f'{PRINT} --NbConvertBase.display_data_priority=text/plain "$1"', "sh")


class Step(BaseModel):
    """A step printed by `workshop check`. Untrusted: the person controls the output."""

    chapter: int | None = None
    title: str = Field("", max_length=200)
    reason: str | None = Field(None, max_length=1000)
    done: bool = False
    minutes: int = 10**6


STEPS = TypeAdapter(Annotated[list[Step], Field(max_length=200)])


@dataclass
class Person:
    """A person's progress, as of the last `workshop check`, and their disk and memory use."""

    name: str
    user: dict[str, Any] = field(default_factory=dict)  # the user model from the hub's API
    steps: list[Step] = field(default_factory=list)
    error: str = ""  # why the last check failed
    attempted_at: float = 0  # time of the last check, even if it failed
    checked_at: float = 0  # time of the last successful check
    progress_at: float = 0  # time of the last check that found a change in the steps done
    idle_since: float = 0  # last activity before the servers of chapter 4 were stopped
    measured_at: float = 0
    disk_MB: int | None = 0  # None if the files could not be measured
    files: int = 0
    baseline: float = float("inf")  # disk use when the disks last had enough free space
    flagged_at: float = 0  # when this person was last flagged for the largest growth in disk use
    memory_MB: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def server(self) -> dict[str, Any] | None:
        """The hub's model of the person's running JupyterLab; None if it is not ready or failed to start."""
        server = self.user["servers"].get("")
        return server if server and server["ready"] and server["started"] else None

    @property
    def usage(self) -> float:
        """The disk use: bytes / LOW_BYTES + files / LOW_FILES; infinite if it could not be measured."""
        return float("inf") if self.disk_MB is None else self.disk_MB * 2**20 / LOW_BYTES + self.files / LOW_FILES

    @property
    def growth(self) -> float:
        """The growth of ``usage`` since the disks last had enough space; infinite if it could not be measured."""
        return max(0, self.usage - self.baseline) if self.disk_MB is not None else float("inf")

    @property
    def next(self) -> Step:
        """The first open step after the last done step; if there is none, the first open step."""
        last = max((place for place, step in enumerate(self.steps, 1) if step.done), default=0)
        return next((step for step in self.steps[last:] + self.steps[:last] if not step.done), Step())

    @property
    def is_stuck(self) -> bool:
        """Whether the person has been on a step for more than twice its planned time."""
        return self.minutes > 2 * self.next.minutes

    @property
    def minutes(self) -> int:
        """Minutes between the last progress and the last successful check."""
        return int((self.checked_at - self.progress_at) / 60)

    async def run(self, *words: str, seconds: float = DEADLINE) -> bytes:
        """Run a command in the person's clone, with the person's account, network and limits; return its output."""
        return await run(PERSON, "run", self.name, "nice", *words, seconds=seconds)

    async def check(self) -> None:
        """Run `workshop check` and store the steps."""
        self.attempted_at, before = time.time(), [step.done for step in self.steps]
        async with CHECKS:
            out = await self.run("sh", "-c", "cd ~/workshop && exec workshop check --json")
        try:
            self.steps, self.checked_at, self.error = STEPS.validate_json(out), time.time(), ""
        except ValidationError as error:
            raise CommandError(f"the command printed invalid steps: {error.errors()[0]['msg']}") from None
        if not self.progress_at or before != [step.done for step in self.steps]:
            self.progress_at = self.checked_at

    async def measure(self) -> None:
        """Measure the person's disk use, as root, because people can make their folders unreadable."""
        try:
            out = await run("nice", "-n", "-10", PERSON, "size", self.name)  # higher priority than people's programs
            size, files, deleted, deleted_files = map(int, out.split())
            self.disk_MB, self.files = size + deleted, files + deleted_files
        except CommandError:
            self.disk_MB = None
        self.measured_at = time.time()

    async def follow(self) -> None:
        """Update the person's data every ten seconds."""
        while True:
            try:
                await self.update(time.time())
            except Exception as error:  # noqa: BLE001 - shown in the person's row; the other rows are unaffected
                self.error = str(error) or repr(error)
            await asyncio.sleep(10)

    async def update(self, now: float) -> None:
        """Measure the disk use, and run `workshop check` or stop idle servers, each only if due."""
        if now > self.measured_at + DISK_SECONDS:
            await self.measure()
        if self.server:
            started, last = seconds(self.server["started"]), seconds(self.user["last_activity"])
            if last > self.checked_at and now > max(self.attempted_at + CHECK_SECONDS, started + QUIET_SECONDS):
                await self.check()
            elif last < now - IDLE_SECONDS and self.idle_since != last:
                self.idle_since = last
                await self.run("workshop", "down", "dask-workers", "dask-scheduler", "dashboard")


people: dict[str, Person] = {}


def seconds(text: str) -> float:
    """Convert a time from the hub's API to a Unix timestamp."""
    return datetime.fromisoformat(text).timestamp()


async def call_hub(path: str, method: str = "GET") -> Any:
    """Call the hub's API and return the response."""
    headers = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    address = f"{os.environ['JUPYTERHUB_API_URL']}/{path}"
    answer = await AsyncHTTPClient().fetch(address, method=method, headers=headers, request_timeout=60)
    return json.loads(answer.body or "null")


def measure_memory() -> None:
    """Add up the memory of each person's processes, as PSS, which divides shared pages among their users."""
    bytes_of: Counter[int] = Counter()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            bytes_of[process.uids().real] += process.memory_full_info().pss
    for person in people.values():
        with suppress(KeyError):
            person.memory_MB = bytes_of[pwd.getpwnam(person.name).pw_uid] // 2**20


def is_low(disk: Path) -> bool:
    """Return whether a disk has less free space than log-ins need."""
    usage = os.statvfs(disk)
    return usage.f_bavail * usage.f_frsize < LOW_BYTES or usage.f_favail < min(LOW_FILES, usage.f_files)


def create_reserves() -> None:
    """Reserve bytes and files on each disk that has three times as many free; the instructor can release them later."""
    for disk in DISKS:
        usage, reserve = os.statvfs(disk), disk / RESERVE
        size, count = min(10**9, usage.f_blocks * usage.f_frsize // 50), min(20_000, usage.f_files // 50)
        has_space = usage.f_bavail * usage.f_frsize > LOW_BYTES + 3 * size and usage.f_favail >= 3 * count
        if has_space and not reserve.exists():
            reserve.mkdir()
            with (reserve / "space").open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            for number in range(count):
                (reserve / str(number)).touch()


async def guard_disks(was_low: bool) -> bool:
    """If space is low, flag the person with the largest growth; on a second flag within a minute, end their processes.

    Returns whether disk space is low.
    """
    await asyncio.to_thread(create_reserves)
    low, started = any(map(is_low, DISKS)), time.time()
    if low or was_low:
        await asyncio.gather(*(person.measure() for person in people.values()))
    if not low:
        for person in filter(lambda person: person.disk_MB is not None, people.values()):
            person.baseline = person.usage
    elif people:
        # Prefer people whose growth was measured: a measurement may fail because of someone else's load.
        person = max(people.values(), key=lambda person: (MIN_GROWTH <= person.growth < float("inf"), person.growth))
        if person.growth >= MIN_GROWTH:
            if person.flagged_at > started - 60:
                if person.disk_MB is not None:
                    person.baseline = person.usage  # reset, so that the person can log in again to delete files
                await run(PERSON, "leave", person.name)
                if person.user["servers"]:  # without this call, the hub would offer the dead server for half a minute
                    await call_hub(f"users/{person.name}/server", "DELETE")
            person.flagged_at = time.time()
    return low


async def watch() -> None:
    """Poll the hub for its users, and watch the disks."""
    low = False
    while True:
        with suppress(OSError, HubError):  # the hub is restarting
            accounts = {account.pw_name for account in pwd.getpwall()} - {INSTRUCTOR}  # created at the first log-in
            for user in await call_hub("users?limit=1000"):
                if user["name"] in accounts:
                    person = people.setdefault(user["name"], Person(user["name"]))
                    person.user = user
                    person.task = person.task or asyncio.create_task(person.follow())
        with suppress(OSError, HubError, CommandError):
            low = await guard_disks(low)
        await asyncio.sleep(10)


class BoardHandler(HubOAuthenticated, RequestHandler):
    """Page with the table of people in the room, for users with access to this service."""

    def set_default_headers(self) -> None:
        """Forbid scripts in the page."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
        self.set_header("Content-Security-Policy", policy)
        self.set_header("X-Content-Type-Options", "nosniff")

    @authenticated
    async def get(self) -> None:
        """Send the table, sorted by disk use if the disk is nearly full."""
        await asyncio.to_thread(measure_memory)
        usage, rows = shutil.disk_usage(DISKS[-1]), [people[name] for name in sorted(people)]
        low = usage.free < usage.total / 20 or any(map(is_low, DISKS))
        if low:
            rows.sort(key=lambda person: -person.usage)
        has_reserve = any((disk / RESERVE).exists() for disk in DISKS)
        values = {"rows": rows, "now": time.time(), "seconds": seconds, "usage": usage}
        self.render("board.html", is_low=low, has_reserve=has_reserve, **values)

    @authenticated
    async def post(self) -> None:
        """Stop a person's server, or release the reserved disk space."""
        if self.get_body_argument("reserve", ""):
            await run("rm", "-rf", *(str(disk / RESERVE) for disk in DISKS))
        elif (name := self.get_body_argument("name")) not in people:
            raise HTTPError(404)
        else:
            await call_hub(f"users/{name}/server", "DELETE")
        self.redirect(PREFIX)


class FilesHandler(BoardHandler):
    """Page that shows a file in a person's clone as text, or a folder as links, read with the person's permissions."""

    @authenticated
    async def get(self, name: str, path: str) -> None:
        """Send a folder's listing if the path ends with /, else a file."""
        if name not in people or ".." in path.split("/"):
            raise HTTPError(404)
        is_folder, path = path.endswith("/"), f"./{path}"
        show = ("ls", "-1ApN") if is_folder else NOTEBOOK if path.endswith(".ipynb") else ("head", "--bytes=100000")
        try:
            out = await people[name].run(*show, path, seconds=20)
        except CommandError as error:
            is_folder, out = False, f"Not shown: {error}".encode()
        if is_folder:
            names = out.decode(errors="replace").splitlines()
            self.finish("<br>".join(f'<a href="./{quote(each)}">{xhtml_escape(each)}</a>' for each in names))
        else:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(out)


async def main() -> None:
    """Start the web server and watch the room."""
    files = rf"{PREFIX}files/([^/]+)(/.*)"
    routes = [(PREFIX, BoardHandler), (files, FilesHandler), (f"{PREFIX}oauth_callback", HubOAuthCallbackHandler)]
    application = Application(
        routes, cookie_secret=os.urandom(32), xsrf_cookies=True, template_path=str(Path(__file__).parent)
    )
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    server = HTTPServer(application, max_body_size=MAX_BODY_BYTES, body_timeout=10, idle_connection_timeout=60)
    server.listen(address.port, address.hostname)
    await watch()


if __name__ == "__main__":
    asyncio.run(main())
