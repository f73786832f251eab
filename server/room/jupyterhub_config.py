"""JupyterHub's configuration for a room: who may log in, and how a person's JupyterLab starts."""

import asyncio
import functools
import grp
import ipaddress
import json
import pwd
import subprocess
import sys
import time
from pathlib import Path
from secrets import compare_digest
from typing import ClassVar

import sqlalchemy
import tornado.httpserver
from jupyterhub import orm
from jupyterhub.auth import PAMAuthenticator
from jupyterhub.handlers import BaseHandler, LoginHandler
from jupyterhub.spawner import LocalProcessSpawner
from tornado.web import HTTPError, authenticated

HERE, SETTINGS, STATE = Path(__file__).parent, Path("/etc/workshop-room"), Path("/var/lib/workshop-room")
sys.path.append(str(HERE))
import people  # noqa: E402

HUB, LAB_PORT = "10.77.0.2", 8888  # on the bridge of `room.sh`, in the hub's network and in a person's
WITH_HUB = ("setpriv", "--pdeathsig", "KILL")  # ends with the hub, which then starts another one
WRONG_PASSWORD_SECONDS = 3
MAX_WRONG, MAX_WRONG_OF_ADDRESS = 30, 6  # of a name within a minute
MAX_CODE_LENGTH = 256  # a challenge has at most 128 characters: RFC 7636
# Reads what a person's programs print until they end, and keeps the first megabyte.
LOG = ("sh", "-c", 'mkdir -p "${1%/*}"; stdbuf -o0 head --bytes=1M >"$1"; exec cat >/dev/null', "sh")
BIN = Path(sys.executable).parent
INSTALLATION = HERE.parents[1]
# The program that nbgitpuller's links call, with what is fixed here.
UPDATE = f"""
export GIT_CONFIG_GLOBAL=/dev/null GIT_TEMPLATE_DIR= GIT_TERMINAL_PROMPT=0
exec {BIN}/gitpuller {INSTALLATION} main ~/workshop 2>&1"""
room = json.loads((SETTINGS / "room.json").read_text())


class PersonSpawner(LocalProcessSpawner):
    """Starts JupyterLab as the person, in the person's network and limits."""

    async def start(self) -> tuple[str, int]:
        """Prepare account, network and clone, then start JupyterLab there."""
        address = await people.run(people.PERSON, "enter", self.user.name, seconds=280)
        self.ip, self.port = str(ipaddress.IPv4Address(address.decode().strip())), LAB_PORT
        home = pwd.getpwnam(self.user.name).pw_dir
        self.environment = {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "JUPYTER_CONFIG_PATH": str(INSTALLATION / "server" / "jupyter"),
            # For kernels and terminals, where the person's own files win. JupyterLab itself is isolated from them.
            "PYTHONPATH": f"{home}/workshop:{home}/workshop/4_pipeline",
        }
        # Chapters 1 to 3 need these two servers, after the start page, for which twenty people may be waiting; the
        # pipeline starts the others.
        servers = "timeout 90 sh -c 'until [ -e START.md ]; do sleep 1; done'; workshop up ftp mlflow"
        lab = f'{sys.executable} -I {BIN}/jupyterhub-singleuser "$@"'
        self.cmd = [people.PERSON, "run", self.user.name, "sh", "-c", f"{{ {servers}; }} & exec {lab}", "sh"]
        log = [*LOG, str(STATE / "people" / f"{self.user.name}.log")]
        with subprocess.Popen(log, stdin=subprocess.PIPE, start_new_session=True).stdin as pipe:
            self.popen_kwargs = {"cwd": "/", "stdout": pipe, "stderr": pipe}
            return await super().start()

    def make_preexec_fn(self, name: str) -> None:
        """Stay root until `person.sh` becomes the person."""

    async def run_post_stop_hook(self) -> None:
        """End all that the person started: servers, kernels, terminals; also where JupyterLab ended by itself."""
        await people.run(people.PERSON, "leave", self.user.name)


class Update(BaseHandler):
    """Brings what was committed to the installation into the person's clone; it takes no parameters."""

    updating: ClassVar[set[str]] = set()

    async def prepare(self) -> None:
        """Refuse all parameters: a link must not choose what is cloned, or where."""
        await super().prepare()
        if self.request.arguments.keys() - {"_xsrf"}:
            raise HTTPError(403, "The update takes no parameters.")

    @authenticated
    async def get(self) -> None:
        """Show the button."""
        self.finish(await self.render_template("update.html", words=""))

    @authenticated
    async def post(self) -> None:
        """Update the clone and show what git says."""
        name = self.current_user.name
        if name in self.updating:
            raise HTTPError(429, "Your update has not ended yet.")
        self.updating.add(name)
        try:
            await people.run(people.PERSON, "enter", name, seconds=280)
            words = (await people.run(people.PERSON, "run", name, "sh", "-c", UPDATE, seconds=120)).decode()
        except people.Trouble as trouble:
            words = f"Not updated: {trouble}"
        finally:
            self.updating.remove(name)
            if not self.current_user.active:  # her git may have started programs, which no JupyterLab ends
                await people.run(people.PERSON, "leave", name)
        self.finish(await self.render_template("update.html", words=words))


class RoomAuthenticator(PAMAuthenticator):
    """Asks for names of the room alone; counts wrong passwords, and delays them without a thread others wait for."""

    tried: ClassVar[list[tuple[object, float]]] = []  # what was tried within a minute: a name, or address and name
    known: ClassVar[set[tuple[str, str]]] = set()  # address and name that logged in, which others cannot lock out

    async def authenticate(self, handler: BaseHandler, data: dict[str, str]) -> str | None:
        """Return the name if the password is PAM's, or in an open room the room's; the instructor has another one."""
        name, now, is_right = self.normalize_username(data["username"]), time.monotonic(), False
        # The page alone takes passwords, behind nginx, which says who asks: the API would take them for tokens.
        is_page = isinstance(handler, LoginHandler) and handler.request.connection.stream.socket.getpeername()[0] == HUB
        if is_page and self.validate_username(name) and self.check_allowed(name):
            asking = ipaddress.ip_address(handler.request.remote_ip)  # of IPv6 everybody has a /64
            pair = str(ipaddress.ip_network((asking, 64 if asking.version == 6 else 32), strict=False)), name
            limits = {pair: MAX_WRONG_OF_ADDRESS} | ({} if pair in self.known else {name: MAX_WRONG})
            self.tried[:] = [each for each in self.tried if each[1] > now - 60]
            if any(sum(key == each for each, _ in self.tried) >= limit for key, limit in limits.items()):
                raise HTTPError(429, f"Too many wrong passwords for {name}. Next: wait a minute.")
            self.tried.extend((key, now) for key in limits)  # before the answer, for many may be tried at once
            if room["open"]:
                right = secret("instructor.password" if name == people.INSTRUCTOR else "room.password")
                is_right = compare_digest(data["password"].encode(), right.encode())
            else:
                is_right = await super().authenticate(handler, data | {"username": name}) is not None
        if is_right:
            self.known.add(pair)
            self.tried[:] = [each for each in self.tried if each not in [(key, now) for key in limits]]
            return name
        await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        return None

    def system_user_exists(self, _user) -> bool:
        """Say that there is an account: `person.sh` makes those of an open room."""
        return True

    async def refresh_user(self, user, _handler=None) -> bool:
        """Return whether the name of an open session is still one of the room's."""
        return self.check_allowed(user.name)

    def get_handlers(self, app) -> list[tuple[str, type[BaseHandler]]]:
        """Add the update to the pages of the hub."""
        return [*super().get_handlers(app), ("/update", Update)]


def secret(name: str) -> str:
    """Return what `setup.sh` wrote into a file."""
    return (SETTINGS / name).read_text().strip()


# The hub stores these as a URL or a cookie says them: thousands of long ones would fill its database.
@sqlalchemy.event.listens_for(orm.OAuthCode.code_challenge, "set")
@sqlalchemy.event.listens_for(orm.OAuthCode.session_id, "set")
def refuse_long(_code: orm.OAuthCode, value: str | None, _old: object, _event: object) -> None:
    """Refuse before there is anything to roll back."""
    if value and len(value) > MAX_CODE_LENGTH:
        raise HTTPError(400, f"A challenge or session has more than {MAX_CODE_LENGTH} characters.")


# JupyterHub has no settings for the limits of its pages, which people reach past nginx, too.
limits = {"max_body_size": people.MAX_BODY_BYTES, "body_timeout": 10, "idle_connection_timeout": 60}
tornado.httpserver.HTTPServer = functools.partial(tornado.httpserver.HTTPServer, **limits)
c = get_config()  # noqa: F821 - JupyterHub gives it
c.JupyterHub.hub_ip = HUB
c.JupyterHub.bind_url = "http://127.0.0.1:8000"  # nobody's: the proxy has a socket
if room["subdomains"]:
    c.JupyterHub.subdomain_host = f"https://{room['host']}:{room['port']}".removesuffix(":443")
    c.JupyterHub.cookie_host_prefix_enabled = True
c.JupyterHub.db_url = "sqlite:////run/workshop-room/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(STATE / "cookie_secret")
c.JupyterHub.template_paths = [str(HERE)]
# JupyterLabs and the proxy outlive the hub.
c.JupyterHub.cleanup_servers = False
c.JupyterHub.last_activity_interval = 30  # which also gives a proxy that started again its routes
c.JupyterHub.api_page_max_limit = 1000  # all people, for the board
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.auth_token = secret("proxy.token")

c.JupyterHub.spawner_class = PersonSpawner
c.Spawner.default_url = "/lab/tree/START.md"
c.Spawner.start_timeout = c.Spawner.http_timeout = 300  # twenty may come at once
c.Spawner.disable_user_config = True  # JupyterLab has that of the installation
c.Spawner.args = ["--ServerApp.allow_remote_access=True", "--ServerApp.jpserver_extensions={'nbgitpuller': False}"]

c.Authenticator.username_pattern = r"[a-z][a-z0-9_-]{0,30}\Z"
c.JupyterHub.authenticator_class = RoomAuthenticator
c.PAMAuthenticator.service = "workshop-room"
c.Authenticator.allow_all = room["open"]
if not room["open"]:
    c.Authenticator.allowed_users = allowed = {*room["people"], people.INSTRUCTOR}
    c.Authenticator.allow_existing_users = False
    # Of a name that was taken out of the list the hub ends the server when it starts.
    c.Authenticator.blocked_users = set(grp.getgrnam("workshop-room").gr_mem) - allowed

c.JupyterHub.load_roles = [
    # Without tokens, which would outlive a log-in, and without shares.
    {"name": "user", "scopes": ["read:users!user", "servers!user", "access:servers!user", "users:activity!user"]},
    {
        "name": "instructor",
        "users": [people.INSTRUCTOR],
        # A person's pages are another site where there are subdomains; else they could act as the instructor.
        "scopes": ["access:services!service=board", *(["access:servers"] if room["subdomains"] else [])],
    },
    {
        "name": "service",
        "services": ["board", "idle"],
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
