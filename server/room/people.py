"""Run commands for the room's users, with a timeout, an output limit and no input."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from tornado.web import HTTPError

INSTRUCTOR = "instructor"
MAX_BODY_BYTES = 2**16  # enough for a form
PERSON = str(Path(__file__).with_name("person.sh"))
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandError(HTTPError):
    """A command failed; the message is shown to the waiting user and on the board."""

    def __init__(self, message: str) -> None:
        super().__init__(500)
        self.jupyterhub_message = message  # JupyterHub's own pages show this attribute

    def __str__(self) -> str:
        return self.jupyterhub_message


async def run(*command: str, seconds: float = 60, size: int = 2**20) -> bytes:
    """Return a command's output; raise CommandError if it fails, prints more than ``size`` bytes, or times out.

    The command's environment contains none of the hub's secrets.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True, cwd="/",
        env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip

    async def read(stream: asyncio.StreamReader) -> bytes:
        try:
            await stream.readexactly(size + 1)
        except asyncio.IncompleteReadError as end:
            return end.partial
        raise CommandError(f"the command printed more than {size} bytes")

    try:
        async with asyncio.timeout(seconds):
            out, err = await asyncio.gather(read(process.stdout), read(process.stderr))
            await process.wait()
    except TimeoutError:
        raise CommandError(f"the command did not finish within {seconds:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process._transport.close()  # processes that left the killed group may still hold the pipes open
    if process.returncode:
        message = (err or out).decode(errors="replace").strip()
        raise CommandError(message[-500:] or f"the command failed with exit code {process.returncode}")
    return out
