"""The instructor's page: a row for each person, with the step they are at, and since when. A service of the hub."""

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
from people import INSTRUCTOR, MAX_BODY_BYTES, PERSON, Trouble, run
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from tornado.escape import xhtml_escape
from tornado.httpclient import AsyncHTTPClient
from tornado.httpclient import HTTPError as HubError
from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, RequestHandler, authenticated

CHECK_SECONDS = 300  # a check takes two to three seconds of a processor
QUIET_SECONDS = 60  # after a log-in, when many log in at once
REST_SECONDS = 1200
DISK_SECONDS = 300
DEADLINE = 120
CHECKS = asyncio.Semaphore(3)  # at once: who makes a check hang keeps one of them for its deadline
PREFIX = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
FOLDERS = map(Path, ("/var/lib/workshop-room", "/home"))
DISKS = [*{folder.stat().st_dev: folder for folder in FOLDERS}.values()]  # often one
RESERVE = ".workshop-room-reserve"
LOW_BYTES, LOW_FILES = 300_000_000, 5_000  # that log-ins need
MIN_GROWTH = 0.3  # of these, to be named
# Prints a notebook's sources, and its outputs as far as they are text. It runs nothing that the person configured.
PRINT = f"JUPYTER_NO_CONFIG=1 exec {sys.executable} -I -m nbconvert --stdout --to=markdown --log-level=ERROR"
NOTEBOOK = ("sh", "-c", f'{PRINT} --NbConvertBase.display_data_priority=text/plain "$1"', "sh")


class Step(BaseModel):
    """A step as `workshop check` prints it; the person could have written it as well."""

    chapter: int | None = None
    title: str = Field("", max_length=200)
    reason: str | None = Field(None, max_length=1000)
    done: bool = False
    minutes: int = 10**6


STEPS = TypeAdapter(Annotated[list[Step], Field(max_length=200)])


@dataclass
class Person:
    """What is known of a person: what `workshop check` said last, when, and since when it says the same."""

    name: str
    user: dict[str, Any] = field(default_factory=dict)  # as the hub has it
    steps: list[Step] = field(default_factory=list)
    trouble: str = ""  # why the last check failed
    tried: float = 0
    checked: float = 0
    since: float = 0
    rested: float = 0  # when the person did something last, before the servers of chapter 4 were ended
    measured: float = 0
    disk_MB: int | None = 0  # None if there are too many files to count
    files: int = 0
    before: float = float("inf")  # what was taken when there was space
    greedy: float = 0  # when the person had taken most of what was then missing
    memory_MB: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def server(self) -> dict[str, Any] | None:
        """What the hub knows of the person's JupyterLab, while it runs; a start that failed has no time."""
        server = self.user["servers"].get("")
        return server if server and server["ready"] and server["started"] else None

    @property
    def taken(self) -> float:
        """How much of the disk the person has, in what log-ins need."""
        return float("inf") if self.disk_MB is None else self.disk_MB * 2**20 / LOW_BYTES + self.files / LOW_FILES

    @property
    def growth(self) -> float:
        """How much the person has taken since there was space; infinite for who cannot be measured."""
        return max(0, self.taken - self.before) if self.disk_MB is not None else float("inf")

    @property
    def next(self) -> Step:
        """The first open step after the last one that is done."""
        last = max((place for place, step in enumerate(self.steps, 1) if step.done), default=0)
        return next((step for step in self.steps[last:] + self.steps[:last] if not step.done), Step())

    @property
    def is_stuck(self) -> bool:
        """Whether nothing was done for twice the minutes that the timetable has for the next step."""
        return self.minutes > 2 * self.next.minutes

    @property
    def minutes(self) -> int:
        """How long nothing was done, up to the last check."""
        return int((self.checked - self.since) / 60)

    async def run(self, *words: str, seconds: float = DEADLINE) -> bytes:
        """Run a command as the person, in the person's network, limits and clone; return what it prints."""
        return await run(PERSON, "run", self.name, "nice", *words, seconds=seconds)

    async def check(self) -> None:
        """Ask `workshop check`."""
        self.tried, before = time.time(), [step.done for step in self.steps]
        async with CHECKS:
            out = await self.run("sh", "-c", "cd ~/workshop && exec workshop check --json")
        try:
            self.steps, self.checked, self.trouble = STEPS.validate_json(out), time.time(), ""
        except ValidationError as error:
            raise Trouble(f"it printed no steps: {error.errors()[0]['msg']}") from None
        if not self.since or before != [step.done for step in self.steps]:
            self.since = self.checked

    async def measure(self) -> None:
        """Add up the person's files, as root: a folder can be closed to its owner."""
        try:
            out = await run("nice", "-n", "-10", PERSON, "size", self.name)  # before what people run
            size, files, deleted, deleted_files = map(int, out.split())
            self.disk_MB, self.files = size + deleted, files + deleted_files
        except Trouble:
            self.disk_MB = None
        self.measured = time.time()

    async def follow(self) -> None:
        """Look at the person again and again."""
        while True:
            try:
                await self.look(time.time())
            except Exception as error:  # noqa: BLE001 - the person's row says it, and the other rows are right
                self.trouble = str(error) or repr(error)
            await asyncio.sleep(10)

    async def look(self, now: float) -> None:
        """Measure, check, or end servers that nobody uses, as far as it is time for it."""
        if now > self.measured + DISK_SECONDS:
            await self.measure()
        if self.server:
            begun, last = seconds(self.server["started"]), seconds(self.user["last_activity"])
            if last > self.checked and now > max(self.tried + CHECK_SECONDS, begun + QUIET_SECONDS):
                await self.check()
            elif last < now - REST_SECONDS and self.rested != last:
                self.rested = last
                await self.run("workshop", "down", "dask-workers", "dask-scheduler", "dashboard")


people: dict[str, Person] = {}


def seconds(text: str) -> float:
    """Return a time as the hub writes it, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


async def ask_hub(path: str, method: str = "GET") -> Any:
    """Return the answer of the hub's API."""
    headers = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    address = f"{os.environ['JUPYTERHUB_API_URL']}/{path}"
    answer = await AsyncHTTPClient().fetch(address, method=method, headers=headers, request_timeout=60)
    return json.loads(answer.body or "null")


def measure_memory() -> None:
    """Add up the memory of all that each person runs; pages that processes share count once."""
    bytes_of: Counter[int] = Counter()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            bytes_of[process.uids().real] += process.memory_full_info().pss
    for person in people.values():
        with suppress(KeyError):
            person.memory_MB = bytes_of[pwd.getpwnam(person.name).pw_uid] // 2**20


def is_short(disk: Path) -> bool:
    """Return whether a disk has less than log-ins need."""
    usage = os.statvfs(disk)
    return usage.f_bavail * usage.f_frsize < LOW_BYTES or usage.f_favail < min(LOW_FILES, usage.f_files)


def keep_reserves() -> None:
    """Take bytes and files where there are three times as many: what an instructor can give when there are none."""
    for disk in DISKS:
        usage, reserve = os.statvfs(disk), disk / RESERVE
        size, count = min(10**9, usage.f_blocks * usage.f_frsize // 50), min(20_000, usage.f_files // 50)
        is_space = usage.f_bavail * usage.f_frsize > LOW_BYTES + 3 * size and usage.f_favail >= 3 * count
        if is_space and not reserve.exists():
            reserve.mkdir()
            with (reserve / "space").open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            for number in range(count):
                (reserve / str(number)).touch()


async def guard_disks(was_short: bool) -> bool:
    """Name who has taken most since there was space, and end all that this person runs the second time in a minute.

    Returns whether space is short.
    """
    await asyncio.to_thread(keep_reserves)
    short, begun = any(map(is_short, DISKS)), time.time()
    if short or was_short:
        await asyncio.gather(*(person.measure() for person in people.values()))
    if not short:
        for person in filter(lambda person: person.disk_MB is not None, people.values()):
            person.before = person.taken
    elif people:
        # First who is known to have grown: others make it hard to measure somebody.
        person = max(people.values(), key=lambda person: (MIN_GROWTH <= person.growth < float("inf"), person.growth))
        if person.growth >= MIN_GROWTH:
            if person.greedy > begun - 60:
                if person.disk_MB is not None:
                    person.before = person.taken  # who comes back to delete files is not ended again
                await run(PERSON, "leave", person.name)
                if person.user["servers"]:  # or a log-in finds, for half a minute, a page whose server is gone
                    await ask_hub(f"users/{person.name}/server", "DELETE")
            person.greedy = time.time()
    return short


async def watch() -> None:
    """Ask the hub who is there, and look at memory and disk, again and again."""
    short = False
    while True:
        with suppress(OSError, HubError):  # while the hub starts again
            accounts = {account.pw_name for account in pwd.getpwall()} - {INSTRUCTOR}  # later than a log-in
            for user in await ask_hub("users?limit=1000"):
                if user["name"] in accounts:
                    person = people.setdefault(user["name"], Person(user["name"]))
                    person.user = user
                    person.task = person.task or asyncio.create_task(person.follow())
        with suppress(OSError, HubError, Trouble):
            short = await guard_disks(short)
        await asyncio.sleep(10)


class Board(HubOAuthenticated, RequestHandler):
    """Shows the room to those who may see this service."""

    def set_default_headers(self) -> None:
        """Let the page run nothing."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
        self.set_header("Content-Security-Policy", policy)
        self.set_header("X-Content-Type-Options", "nosniff")

    @authenticated
    async def get(self) -> None:
        """Answer with the table; where the disk is nearly full, those who use most of it come first."""
        await asyncio.to_thread(measure_memory)
        usage, rows = shutil.disk_usage(DISKS[-1]), [people[name] for name in sorted(people)]
        short = usage.free < usage.total / 20 or any(map(is_short, DISKS))
        if short:
            rows.sort(key=lambda person: -person.taken)
        has_reserve = any((disk / RESERVE).exists() for disk in DISKS)
        values = {"rows": rows, "now": time.time(), "seconds": seconds, "usage": usage}
        self.render("board.html", is_short=short, has_reserve=has_reserve, **values)

    @authenticated
    async def post(self) -> None:
        """End a person's server, or give the reserve."""
        if self.get_body_argument("reserve", ""):
            await run("rm", "-rf", *(str(disk / RESERVE) for disk in DISKS))
        elif (name := self.get_body_argument("name")) not in people:
            raise HTTPError(404)
        else:
            await ask_hub(f"users/{name}/server", "DELETE")
        self.redirect(PREFIX)


class Files(Board):
    """Shows a file of a person's clone as plain text, and a folder as links. The person's own user reads it."""

    @authenticated
    async def get(self, name: str, path: str) -> None:
        """Answer with a folder if the path ends with /, else with a file."""
        if name not in people or ".." in path.split("/"):
            raise HTTPError(404)
        is_folder, path = path.endswith("/"), f"./{path}"
        show = ("ls", "-1ApN") if is_folder else NOTEBOOK if path.endswith(".ipynb") else ("head", "--bytes=100000")
        try:
            out = await people[name].run(*show, path, seconds=20)
        except Trouble as trouble:
            is_folder, out = False, f"Not shown: {trouble}".encode()
        if is_folder:
            names = out.decode(errors="replace").splitlines()
            self.finish("<br>".join(f'<a href="./{quote(each)}">{xhtml_escape(each)}</a>' for each in names))
        else:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(out)


async def main() -> None:
    """Serve the page."""
    files = rf"{PREFIX}files/([^/]+)(/.*)"
    routes = [(PREFIX, Board), (files, Files), (f"{PREFIX}oauth_callback", HubOAuthCallbackHandler)]
    application = Application(
        routes, cookie_secret=os.urandom(32), xsrf_cookies=True, template_path=str(Path(__file__).parent)
    )
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    server = HTTPServer(application, max_body_size=MAX_BODY_BYTES, body_timeout=10, idle_connection_timeout=60)
    server.listen(address.port, address.hostname)
    await watch()


if __name__ == "__main__":
    asyncio.run(main())
