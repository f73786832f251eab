"""JupyterHub's configuration for a room: who may log in, and how a person's JupyterLab starts."""

import asyncio
import json
import pwd
import subprocess
import sys
from pathlib import Path

from jupyterhub.spawner import LocalProcessSpawner
from tornado.web import HTTPError

HERE, SETTINGS, STATE = Path(__file__).parent, Path("/etc/workshop-room"), Path("/var/lib/workshop-room")
INSTRUCTOR = "instructor"
HUB, LAB_PORT = "10.77.0.2", 8888  # on the bridge of `room.sh`
CGROUPS = Path("/sys/fs/cgroup")
WITH_HUB = ("setpriv", "--pdeathsig", "KILL")  # ends with the hub, which then starts another one
UNITS = {"M": 2**20, "G": 2**30}
room = json.loads((SETTINGS / "room.json").read_text())
memory = int(room["memory"][:-1]) * UNITS[room["memory"][-1]]


class PersonSpawner(LocalProcessSpawner):
    """Starts JupyterLab as the person, in a network of their own, with so much memory at most.

    With cgroups (version 2) the limit counts for all of a person's processes together, else for each of them.
    """

    namespace = ""

    async def start(self) -> tuple[str, int]:
        """Prepare account, network and clone, then start JupyterLab there."""
        self.ip = (await person("enter", self.user.name)).strip()
        self.port = LAB_PORT
        home = pwd.getpwnam(self.user.name).pw_dir
        self.popen_kwargs = {"cwd": "/"}
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "JUPYTER_CONFIG_PATH": f"{home}/workshop/server/jupyter",
            # Their own files win over those of /opt/workshop.
            "PYTHONPATH": f"{home}/workshop:{home}/workshop/4_pipeline",
            "NBGITPULLER_PARENTPATH": home,
        }
        # Chapters 1 to 3 need these two servers, after the start page, for which twenty people may be waiting; the
        # pipeline starts the others.
        servers = "timeout 90 sh -c 'until [ -e START.md ]; do sleep 1; done'; workshop up ftp mlflow"
        begin = ["sh", "-c", f'{{ {servers}; }} & exec jupyterhub-singleuser "$@"', "sh"]
        self.cmd = [str(HERE / "person.sh"), "run", self.user.name, *begin]
        return await super().start()

    def make_preexec_fn(self, name: str) -> None:
        """Stay root until the network is entered; `setpriv` then becomes the person."""

    async def stop(self, now: bool = False) -> None:
        """End JupyterLab and all that the person started: servers, kernels, terminals."""
        await super().stop(now)
        await person("leave", self.user.name)


async def person(*words: str) -> str:
    """Return what `person.sh` prints; raise an error with what it says, which the waiting person reads."""
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(HERE / "person.sh", *words, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    if process.returncode:
        error = HTTPError(500)
        error.jupyterhub_message = err.decode().strip()
        raise error
    return out.decode()


def secret(name: str) -> str:
    """Return what `setup.sh` wrote into a file."""
    return (SETTINGS / name).read_text().strip()


c = get_config()  # noqa: F821 - JupyterHub gives it
c.JupyterHub.hub_ip = HUB
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.db_url = "sqlite:////run/workshop-room/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(STATE / "cookie_secret")
# JupyterLabs and the proxy outlive the hub.
c.JupyterHub.cleanup_servers = False
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.auth_token = secret("proxy.token")

c.JupyterHub.spawner_class = PersonSpawner
c.Spawner.default_url = "/lab/tree/START.md"
c.Spawner.start_timeout = c.Spawner.http_timeout = 300  # twenty may come at once
c.Spawner.args = ["--ServerApp.allow_remote_access=True"]

c.Authenticator.admin_users = {INSTRUCTOR}
c.Authenticator.username_pattern = "[a-z][a-z0-9_-]{0,30}"
if not room["open"]:
    c.JupyterHub.authenticator_class = "pam"
    c.Authenticator.allowed_users = {*room["people"], INSTRUCTOR}
    c.PAMAuthenticator.open_sessions = False
    c.PAMAuthenticator.service = "workshop-room"
else:
    c.JupyterHub.authenticator_class = "shared-password"
    c.Authenticator.allow_all = True
    c.SharedPasswordAuthenticator.user_password = secret("room.password")
    c.SharedPasswordAuthenticator.admin_password = secret("instructor.password")

c.JupyterHub.load_roles = [
    {
        "name": "instructor",
        "users": [INSTRUCTOR],
        "scopes": ["admin-ui", "admin:users", "admin:servers", "access:servers", "access:services!service=board"],
    },
    {"name": "board", "services": ["board"], "scopes": ["list:users", "read:users:activity", "read:servers"]},
    {
        "name": "idle",
        "services": ["idle"],
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
    },
]
c.JupyterHub.services = [
    {
        "name": "board",
        "url": "http://127.0.0.1:8082",
        "command": [*WITH_HUB, sys.executable, str(HERE / "board.py")],
        "oauth_no_confirm": True,
        "display": True,
    },
    {
        "name": "idle",
        "command": [*WITH_HUB, sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=3600", "--cull-every=300"],
    },
]
