"""JupyterLab's configuration: `workshop lab` starts it with this file.

Elsewhere, such as on a hub, JupyterLab finds the file once its folder is in JUPYTER_CONFIG_PATH.
"""

import os
import sys
from pathlib import Path

from workshop.servers import lab_tiles
from workshop.servers.services import ports_for_shell
from workshop.settings import get_settings

c = get_config()  # noqa: F821 - Jupyter gives it
settings = get_settings()
folder = settings.jupyter

# Kernels and terminals get this process's environment: the servers' addresses, and this Python's programs first.
os.environ.update(ports_for_shell(settings, lambda _: None).exports())  # also before the servers have started
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

c.ServerProxy.servers = lab_tiles.tiles()

c.LabApp.default_url = "/lab/tree/START.md"
c.LabApp.app_settings_dir = str(folder / "settings")
c.LabApp.workspaces_dir = str(settings.state / "jupyter")  # not the open tabs of other projects
c.LabApp.news_url = None  # no requests to other sites
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
c.LabApp.custom_css = True
c.ServerApp.tornado_settings = {"static_custom_path": [str(folder / "custom")]}
