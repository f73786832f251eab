"""JupyterLab's configuration for `workshop lab`.

To use it elsewhere, such as on a hub, add this folder to JUPYTER_CONFIG_PATH.
"""

import asyncio
import atexit
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from tornado.web import HTTPError

from workshop.exports import exports_of
from workshop.servers import lab_tiles
from workshop.servers.services import ports_for_shell
from workshop.settings import get_settings

c = get_config()  # noqa: F821 - defined by Jupyter
settings = get_settings()
folder = Path(__file__).parent  # in a room, this folder is not in the user's clone

# Kernels and terminals inherit the servers' addresses and a PATH that starts with this environment's bin folder.
os.environ.update(exports_of(ports_for_shell(settings, lambda _: None)))  # works even before the servers start
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# Prefer this environment's kernel to one in the home folder from another installation.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

c.ServerApp.root_dir = str(settings.root)
c.ServerApp.allow_root = True  # in containers, JupyterLab runs as root, like the servers
c.Application.log_level = "ERROR"
# Kernels send their output over a local port, which other users of the machine must not be able to read.
c.KernelManager.transport_encryption = "auto"
# The user's shell files may change PATH; this bashrc reads them first, then sets PATH.
c.ServerApp.terminado_settings = {"shell_command": ["bash", "--rcfile", str(folder / "bashrc")]}
os.environ["BASH_SILENCE_DEPRECATION_WARNING"] = "1"  # hide macOS's advice to use zsh


def release_threads():
    """Stop AnyIO's idle threads, which would wait forever if a request outlives the server."""
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.queue.put_nowait(None)


# Not `atexit`, whose handlers run only after Python has joined the threads.
threading._register_atexit(release_threads)

START_PAGE = "START.md"


class StartPageManager(AsyncLargeFileManager):
    """Jupyter's contents manager, which also refreshes the start page before it is read."""

    async def get(self, path, content=True, **keywords):
        """Return a file or a folder; rewrite START.md before reading it, but at most every five seconds.

        JupyterLab lists the folder every ten seconds without content; this creates the page only if it is missing.
        """
        if path.strip("/") == START_PAGE:
            page = settings.root / START_PAGE
            if not page.exists() or (content and time.time() - page.stat().st_mtime > 5):
                await self._write_page()
        return await super().get(path, content=content, **keywords)

    async def _write_page(self):
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        check, deadline = subprocess.Popen(["workshop", "check"], cwd=settings.root, **quiet), time.monotonic() + 60
        atexit.register(check.kill)  # `finally` does not run if the event loop stops
        try:
            while check.poll() is None and time.monotonic() < deadline and not self.parent._stopping:
                await asyncio.sleep(0.1)
        finally:
            check.kill()
            check.wait()
            atexit.unregister(check.kill)
        if self.parent._stopping:  # a thread that reads the file now would block Jupyter's shutdown
            raise HTTPError(503, "Jupyter is stopping")


c.ServerApp.contents_manager_class = StartPageManager
c.ContentsManager.hide_globs.append("*.egg-info")  # in addition to Jupyter's default patterns

c.ServerProxy.servers = lab_tiles.tiles()

c.LabApp.default_url = f"/lab/tree/{START_PAGE}"
c.LabApp.app_settings_dir = str(folder / "settings")
c.LabApp.workspaces_dir = str(settings.state / "jupyter")  # do not reopen tabs of other projects
c.LabApp.news_url = None  # no requests to the internet
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
c.LabApp.custom_css = True
c.ServerApp.tornado_settings = {"static_custom_path": [str(folder / "custom")]}
