"""JupyterLab's configuration: `workshop lab` starts it with this file.

Elsewhere, such as on a hub, JupyterLab finds the file once its folder is in JUPYTER_CONFIG_PATH.
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

c = get_config()  # noqa: F821 - Jupyter gives it
settings = get_settings()
folder = Path(__file__).parent  # not the clone's, in a room

# Kernels and terminals get this process's environment: the servers' addresses, and this Python's programs first.
os.environ.update(exports_of(ports_for_shell(settings, lambda _: None)))  # also before the servers have started
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# Not a kernel `python3` that another installation left in the home folder.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

c.ServerApp.root_dir = str(settings.root)
c.ServerApp.allow_root = True  # in a container, where the servers run as root, too
c.Application.log_level = "ERROR"
# A kernel's output goes over a port of this machine, and other users of it must not read it.
c.KernelManager.transport_encryption = "auto"
# A shell's own files may change PATH; this file sets it last.
c.ServerApp.terminado_settings = {"shell_command": ["bash", "--rcfile", str(folder / "bashrc")]}
os.environ["BASH_SILENCE_DEPRECATION_WARNING"] = "1"  # macOS recommends another shell at each start


def release_threads():
    """End AnyIO's idle threads, which would wait for work forever after a request that outlasts Jupyter."""
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.queue.put_nowait(None)


# Python's own hook before it joins the threads; `atexit` comes after that.
threading._register_atexit(release_threads)

START_PAGE = "START.md"


class StartPageManager(AsyncLargeFileManager):
    """Jupyter's own manager of files, except that the start page is written again before it is read."""

    async def get(self, path, content=True, **keywords):
        """Return a file or a folder; before START.md is read, look again at what it shows, every five seconds at most.

        JupyterLab lists the folder every ten seconds, without the content of its files. So it also asks for a page that
        it is to open.
        """
        if path.strip("/") == START_PAGE:
            page = settings.root / START_PAGE
            if not page.exists() or (content and time.time() - page.stat().st_mtime > 5):
                await self._write_page()
        return await super().get(path, content=content, **keywords)

    async def _write_page(self):
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        check, deadline = subprocess.Popen(["workshop", "check"], cwd=settings.root, **quiet), time.monotonic() + 60
        atexit.register(check.kill)  # a loop that is stopped does not come to `finally`
        try:
            while check.poll() is None and time.monotonic() < deadline and not self.parent._stopping:
                await asyncio.sleep(0.1)
        finally:
            check.kill()
            check.wait()
            atexit.unregister(check.kill)
        if self.parent._stopping:  # a thread that reads the file now would keep Jupyter from ending
            raise HTTPError(503, "Jupyter is stopping")


c.ServerApp.contents_manager_class = StartPageManager
c.ContentsManager.hide_globs.append("*.egg-info")  # to the patterns that Jupyter hides by default

c.ServerProxy.servers = lab_tiles.tiles()

c.LabApp.default_url = f"/lab/tree/{START_PAGE}"
c.LabApp.app_settings_dir = str(folder / "settings")
c.LabApp.workspaces_dir = str(settings.state / "jupyter")  # not the open tabs of other projects
c.LabApp.news_url = None  # no requests to other sites
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
c.LabApp.custom_css = True
c.ServerApp.tornado_settings = {"static_custom_path": [str(folder / "custom")]}
