"""The instructor's page: a row for each person, with the step they are at, and since when. A service of the hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import psutil
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler, authenticated

CHECK_SECONDS = 300  # a check takes two to three seconds of a processor
QUIET_SECONDS = 60  # after a log-in, when many log in at once
INSTRUCTOR = "instructor"
REST_SECONDS = 1200
PREFIX = os.environ["JUPYTERHUB_SERVICE_PREFIX"]


@dataclass
class Person:
    """What is known of a person: what `workshop check` said last, when, and since when it says the same."""

    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    checked: float = 0
    since: float = 0
    rested: float = 0  # when the person did something last, before the servers of chapter 4 were ended

    @property
    def next(self) -> dict[str, Any]:
        """The first open step after the last one that is done."""
        last = max((place for place, step in enumerate(self.steps, 1) if step["done"]), default=0)
        steps = self.steps[last:] + self.steps[:last]
        return next((step for step in steps if not step["done"]), {"chapter": "", "title": "", "reason": ""})

    @property
    def is_stuck(self) -> bool:
        """Whether nothing was done for twice the minutes that the timetable has for the next step."""
        return self.minutes > 2 * self.next.get("minutes", self.minutes)

    @property
    def minutes(self) -> int:
        """How long nothing was done, up to the last check."""
        return int((self.checked - self.since) / 60)

    @property
    def megabytes(self) -> int:
        """The memory of all that the person runs; pages that processes share count once."""
        uid, total = pwd.getpwnam(self.name).pw_uid, 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.uids().real == uid:
                    total += process.memory_full_info().pss
        return total // 2**20

    async def run(self, *words: str) -> bytes:
        """Run a command as the person, in the person's network and clone; return what it prints."""
        home = pwd.getpwnam(self.name).pw_dir
        process = await asyncio.create_subprocess_exec(
            *(Path(__file__).with_name("person.sh"), "run", self.name, "nice", *words), cwd=f"{home}/workshop",
            env={"HOME": home, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return (await process.communicate())[0]

    async def check(self) -> None:
        """Ask `workshop check`."""
        before = [step["done"] for step in self.steps]
        with contextlib.suppress(ValueError):
            self.steps, self.checked = json.loads(await self.run("workshop", "check", "--json")), time.time()
        if not self.since or before != [step["done"] for step in self.steps]:
            self.since = self.checked


people: dict[str, Person] = {}


def seconds(text: str) -> float:
    """Return a time as the hub writes it, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


async def users() -> list[dict[str, Any]]:
    """Return what the hub knows of those who are not instructors."""
    headers = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    answer = await AsyncHTTPClient().fetch(f"{os.environ['JUPYTERHUB_API_URL']}/users", headers=headers)
    people = [user for user in json.loads(answer.body) if user["name"] != INSTRUCTOR]
    return [user | {"server": user["servers"].get("")} for user in people]


async def check_all() -> None:
    """Check those who did something since the last time, one after the other, again and again."""
    while True:
        with contextlib.suppress(OSError):  # while the hub starts again
            for user in await users():
                person = people.setdefault(user["name"], Person(user["name"]))
                if not (server := user["server"]):
                    continue
                begun, last = seconds(server["started"]), seconds(server["last_activity"])
                if last > person.checked and time.time() > max(person.checked + CHECK_SECONDS, begun + QUIET_SECONDS):
                    await person.check()
                elif last < time.time() - REST_SECONDS and person.rested != last:
                    person.rested = last
                    await person.run("workshop", "down", "dask-workers", "dask-scheduler", "dashboard")
        await asyncio.sleep(10)


class Board(HubOAuthenticated, RequestHandler):
    """Shows the room to those who may see this service."""

    @authenticated
    async def get(self) -> None:
        """Answer with the table."""
        rows = [(user, people.get(user["name"], Person(user["name"]))) for user in await users()]
        self.render("board.html", rows=rows, now=time.time(), seconds=seconds)


async def main() -> None:
    """Serve the page."""
    routes = [(PREFIX, Board), (f"{PREFIX}oauth_callback", HubOAuthCallbackHandler)]
    application = Application(routes, cookie_secret=os.urandom(32), template_path=str(Path(__file__).parent))
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    HTTPServer(application).listen(address.port, address.hostname)
    await check_all()


if __name__ == "__main__":
    asyncio.run(main())
