"""MLflow's own server application behind a door: bodies have a limit, and answers tell nothing of what is inside.

`mlflow server --app-name workshop` serves it (entry point ``mlflow.app``); this module, run as a program, starts that
with the arguments that the settings ask for.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from workshop.errors import ServiceError, WorkshopError
from workshop.ownership import find_holders
from workshop.servers import ports
from workshop.servers.services import program
from workshop.settings import Settings, get_settings

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]

logger = logging.getLogger(__name__)

# MLflow itself takes at most 1 MB in a batch; what is larger is an artifact, and goes another way.
MOST_BODY_BYTES = 10_000_000
ARTIFACTS = re.compile(r"/(api|ajax-api)/[\d.]+/mlflow(-artifacts/artifacts|/upload-artifact)\b")
# What a failed statement leaves in an error: the database's name, the statement, a page of SQLAlchemy's, a traceback.
INTERNALS = re.compile(r"\[SQL|SQLite|sqlite3|sqlalche|psycopg|Traceback \(most recent|File \"/")
OVERLOADED = re.compile(r"QueuePool limit|database is locked|too many clients already")
ERROR = 400
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT = "WORKSHOP_TRACKING_SERVER_PID"


class TooLarge(Exception):
    """A body is larger than what is allowed."""


class Door:
    """An ASGI application around another."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, its body counted, and its answer back, its text looked at when it is an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = Body(scope, receive)
        answer = Answer(send, body)
        if body.too_large:  # by its own word: before any of it is read
            await _refuse(send)
            return
        try:
            await self._app(scope, body, answer)
        except Exception:
            # What the body raises comes out of MLflow's application in a group of others, and after its answer.
            if not body.too_large:
                logger.exception("A request failed: %s %s", scope["method"], scope["path"])
            if not answer.begun:
                await answer.fail()


class Body:
    """Brings a request's body, of which there is a limit; artifacts may be of any size."""

    def __init__(self, scope: Message, receive: Receive) -> None:
        self._receive = receive
        self._most = None if ARTIFACTS.match(scope["path"]) else MOST_BODY_BYTES
        self._received = 0
        declared = dict(scope["headers"]).get(b"content-length", b"")
        self.too_large = self._is_too_large(int(declared) if declared.isdigit() else 0)

    async def __call__(self) -> Message:
        """Return the next message; raise TooLarge when it is one too many."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.too_large = self._is_too_large(self._received)
        if self.too_large:
            raise TooLarge
        return message

    def _is_too_large(self, size: int) -> bool:
        return self._most is not None and size > self._most


class Answer:
    """Takes an answer's messages: passes good ones on, collects errors, and says in its own words what would tell."""

    def __init__(self, send: Send, body: Body) -> None:
        self._send, self._request = send, body
        self._start: Message | None = None
        self._body = b""
        self.begun = False

    async def __call__(self, message: Message) -> None:
        """Take one message."""
        if message["type"] == "http.response.start" and message["status"] >= ERROR:
            self._start = message
        elif self._start is None:
            self.begun = True
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._end()

    async def fail(self) -> None:
        """Answer for an application that did not."""
        self.begun = True
        if self._request.too_large:
            await _refuse(self._send)
        else:
            await _tell(self._send, 500, "INTERNAL_ERROR", "The server failed; its log says why.")

    async def _end(self) -> None:
        if self._request.too_large:
            await self.fail()
            return
        self.begun = True
        text = self._body.decode(errors="replace")
        if OVERLOADED.search(text):
            logger.error("Overloaded: %s", text)
            await _tell(
                self._send, 503, "TEMPORARILY_UNAVAILABLE", "The tracking server has too much to do: try again."
            )
        elif INTERNALS.search(text):
            logger.error("Not shown to the client: %s", text)
            status = self._start["status"]
            code = "INVALID_PARAMETER_VALUE" if status < 500 else "INTERNAL_ERROR"
            await _tell(self._send, status, code, "The database refused the request; the server's log says why.")
        else:
            await self._send(self._start)
            await self._send({"type": "http.response.body", "body": self._body})


async def _refuse(send: Send) -> None:
    words = f"The body is larger than {MOST_BODY_BYTES:,} bytes; log what is large as an artifact."
    await _tell(send, 413, "INVALID_PARAMETER_VALUE", words)


async def _tell(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error_code": code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_app() -> Door:
    """Return MLflow's application behind the door."""
    # Only now: MLflow's application reads its settings from the environment when it is imported.
    from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR
    from mlflow.server.fastapi_app import app

    _end_with_parent()
    settings = get_settings().model_copy(update={"mlflow_tracking_uri": None})
    # The password is for the FTP server of the settings and for no other.
    if os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, "").startswith(f"{settings.ftp_uri}/"):
        os.environ |= settings.ftp_environment()
    return Door(app)


def _end_with_parent() -> None:
    """Die with `mlflow server`, which started this process: nobody else would end it, and it would keep the port."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        sys.exit("the process that started this server is gone")  # while this one was still at its imports


# -- the program ---------------------------------------------------------------------------------------------------
def _own_hosts(settings: Settings) -> list[str]:
    """Return by which names, on whatever port a tunnel may have, browsers and clients call this machine."""
    hosts = dict.fromkeys(("127.0.0.1", "localhost", "[[]::1]", settings.host))  # as patterns, where [ is special
    return [pattern for host in hosts for pattern in (host, f"{host}:*")]


def command(settings: Settings) -> list[str]:
    """Return the command line of `mlflow server`."""
    return [
        program("mlflow"),
        "server",
        *("--host", settings.host, "--port", str(settings.mlflow_port)),
        # The address of a database server holds a password: it goes the other way.
        *(() if settings.database_uri else ("--backend-store-uri", f"sqlite:///{settings.database}")),
        *("--artifacts-destination", settings.artifacts_uri),
        # More server processes would share one SQLite file and add 40 ms to each kept-alive request.
        *("--workers", "1"),
        *("--app-name", "workshop"),
        # A page of another site whose name is made to mean this machine (DNS rebinding) gets no answer.
        *("--allowed-hosts", ",".join(_own_hosts(settings))),
    ]


def main() -> NoReturn:
    """Become `mlflow server`; exit with 1 when its port is taken, which it finds out late, and ends with 0."""
    try:
        settings = get_settings()
        if not ports.is_free(settings.host, settings.mlflow_port):
            holders = find_holders(settings, settings.mlflow_port)
            raise ServiceError(
                f"The tracking server cannot listen on {settings.host}:{settings.mlflow_port}.",
                value=f"held by {holders.get(settings.mlflow_port, 'another process')}",
                next_step="end that, or set WORKSHOP_MLFLOW_PORT to a free port",
            )
    except WorkshopError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    words = command(settings)
    os.execve(words[0], words, os.environ | {PARENT: str(os.getpid())})  # noqa: S606


if __name__ == "__main__":
    main()
