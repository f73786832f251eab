"""JupyterHub's configuration for a room: authentication, spawner and services."""

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

HUB, LAB_PORT = "10.77.0.2", 8888  # the hub's address on the bridge of `room.sh`; JupyterLab's port in each namespace
WITH_HUB = ("setpriv", "--pdeathsig", "KILL")  # services die with the hub, and the next hub starts them again
WRONG_PASSWORD_SECONDS = 3
MAX_WRONG, MAX_WRONG_OF_ADDRESS = 30, 6  # maximum of wrong passwords per name and minute: in all, from one address
MAX_CODE_LENGTH = 256  # RFC 7636 allows at most 128 characters for a code challenge
# Log the first megabyte of a person's output; read and discard the rest, so that the programs can keep writing.
LOG = ("sh", "-c", 'mkdir -p "${1%/*}"; stdbuf -o0 head --bytes=1M >"$1"; exec cat >/dev/null', "sh")
BIN = Path(sys.executable).parent
INSTALLATION = HERE.parents[1]
# Run the program behind nbgitpuller's links, but with fixed arguments.
UPDATE = f"""
export GIT_CONFIG_GLOBAL=/dev/null GIT_TEMPLATE_DIR= GIT_TERMINAL_PROMPT=0
exec {BIN}/gitpuller {INSTALLATION} main ~/workshop 2>&1"""
room = json.loads((SETTINGS / "room.json").read_text())


class PersonSpawner(LocalProcessSpawner):
    """Spawner that starts JupyterLab under the user's account, with the user's network namespace and limits."""

    async def start(self) -> tuple[str, int]:
        """Prepare the person's account, network and clone, then start JupyterLab."""
        address = await people.run(people.PERSON, "enter", self.user.name, seconds=280)
        self.ip, self.port = str(ipaddress.IPv4Address(address.decode().strip())), LAB_PORT
        home = pwd.getpwnam(self.user.name).pw_dir
        self.environment = {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "JUPYTER_CONFIG_PATH": str(INSTALLATION / "server" / "jupyter"),
            # For kernels and terminals only: JupyterLab itself runs isolated (-I) from the person's files.
            "PYTHONPATH": f"{home}/workshop:{home}/workshop/4_pipeline",
        }
        # Start only the servers that chapters 1 to 3 need, after the start page: twenty people may be waiting for it.
        servers = "timeout 90 sh -c 'until [ -e START.md ]; do sleep 1; done'; workshop up ftp mlflow"
        lab = f'{sys.executable} -I {BIN}/jupyterhub-singleuser "$@"'
        self.cmd = [people.PERSON, "run", self.user.name, "sh", "-c", f"{{ {servers}; }} & exec {lab}", "sh"]
        log = [*LOG, str(STATE / "people" / f"{self.user.name}.log")]
        with subprocess.Popen(log, stdin=subprocess.PIPE, start_new_session=True).stdin as pipe:
            self.popen_kwargs = {"cwd": "/", "stdout": pipe, "stderr": pipe}
            return await super().start()

    def make_preexec_fn(self, name: str) -> None:
        """Do nothing: `person.sh` switches to the user."""

    async def run_post_stop_hook(self) -> None:
        """End all of the user's processes (servers, kernels, terminals), even if JupyterLab exited by itself."""
        await people.run(people.PERSON, "leave", self.user.name)


class UpdateHandler(BaseHandler):
    """Page that pulls new commits from the installed repository into the user's clone; it accepts no parameters."""

    updating: ClassVar[set[str]] = set()

    async def prepare(self) -> None:
        """Reject all parameters: a link must not choose what is cloned, or where."""
        await super().prepare()
        if self.request.arguments.keys() - {"_xsrf"}:
            raise HTTPError(403, "The update accepts no parameters.")

    @authenticated
    async def get(self) -> None:
        """Show the update button."""
        self.finish(await self.render_template("update.html", output=""))

    @authenticated
    async def post(self) -> None:
        """Update the clone and show git's output."""
        name = self.current_user.name
        if name in self.updating:
            raise HTTPError(429, "Your update is still running. Next: wait a minute.")
        self.updating.add(name)
        try:
            await people.run(people.PERSON, "enter", name, seconds=280)
            output = (await people.run(people.PERSON, "run", name, "sh", "-c", UPDATE, seconds=120)).decode()
        except people.CommandError as error:
            output = f"Not updated: {error}"
        finally:
            self.updating.remove(name)
            if not self.current_user.active:  # without JupyterLab, nothing else stops programs that git started
                await people.run(people.PERSON, "leave", name)
        self.finish(await self.render_template("update.html", output=output))


class RoomAuthenticator(PAMAuthenticator):
    """PAM authenticator for the room's users; limits failed log-ins, and delays each without blocking other log-ins."""

    attempts: ClassVar[list[tuple[object, float]]] = []  # (key of `limits`, time) of failed log-ins in the last minute
    known: ClassVar[set[tuple[str, str]]] = set()  # (address, name) pairs that logged in; others cannot lock them out

    async def authenticate(self, handler: BaseHandler, data: dict[str, str]) -> str | None:
        """Return the name if the password is correct. PAM checks the password, except in an open room."""
        name, now, is_right = self.normalize_username(data["username"]), time.monotonic(), False
        # Accept log-ins only from the page behind nginx, which sets the client's address: the API would issue tokens.
        is_page = isinstance(handler, LoginHandler) and handler.request.connection.stream.socket.getpeername()[0] == HUB
        if is_page and self.validate_username(name) and self.check_allowed(name):
            client = ipaddress.ip_address(handler.request.remote_ip)  # an IPv6 client controls a whole /64
            pair = str(ipaddress.ip_network((client, 64 if client.version == 6 else 32), strict=False)), name
            limits = {pair: MAX_WRONG_OF_ADDRESS} | ({} if pair in self.known else {name: MAX_WRONG})
            self.attempts[:] = [each for each in self.attempts if each[1] > now - 60]
            if any(sum(key == each for each, _ in self.attempts) >= limit for key, limit in limits.items()):
                raise HTTPError(429, f"Too many wrong passwords for {name}. Next: wait a minute.")
            self.attempts.extend((key, now) for key in limits)  # count before the check: many checks may run at once
            if room["open"]:  # the room's password; the instructor has a separate one
                right = secret("instructor.password" if name == people.INSTRUCTOR else "room.password")
                is_right = compare_digest(data["password"].encode(), right.encode())
            else:
                is_right = await super().authenticate(handler, data | {"username": name}) is not None
        if is_right:
            self.known.add(pair)
            self.attempts[:] = [each for each in self.attempts if each not in [(key, now) for key in limits]]
            return name
        await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        return None

    def system_user_exists(self, _user) -> bool:
        """Return True: `person.sh` creates the accounts of an open room."""
        return True

    async def refresh_user(self, user, _handler=None) -> bool:
        """Return whether a logged-in user is still allowed in the room."""
        return self.check_allowed(user.name)

    def get_handlers(self, app) -> list[tuple[str, type[BaseHandler]]]:
        """Add the update page to the hub's handlers."""
        return [*super().get_handlers(app), ("/update", UpdateHandler)]


def secret(name: str) -> str:
    """Read a secret that `setup.sh` wrote into a file."""
    return (SETTINGS / name).read_text().strip()


# The hub stores these values from URLs and cookies unchecked: thousands of long ones would fill its database.
@sqlalchemy.event.listens_for(orm.OAuthCode.code_challenge, "set")
@sqlalchemy.event.listens_for(orm.OAuthCode.session_id, "set")
def reject_long(_code: orm.OAuthCode, value: str | None, _old: object, _event: object) -> None:
    """Reject a value that is too long before the transaction starts."""
    if value and len(value) > MAX_CODE_LENGTH:
        raise HTTPError(400, f"A code challenge or a session id has more than {MAX_CODE_LENGTH} characters.")


# Limit requests here, too, because people can bypass nginx; JupyterHub has no settings for these limits.
limits = {"max_body_size": people.MAX_BODY_BYTES, "body_timeout": 10, "idle_connection_timeout": 60}
tornado.httpserver.HTTPServer = functools.partial(tornado.httpserver.HTTPServer, **limits)
c = get_config()  # noqa: F821 - defined by JupyterHub
c.JupyterHub.hub_ip = HUB
c.JupyterHub.bind_url = "http://127.0.0.1:8000"  # unused: the proxy listens on a Unix socket
if room["subdomains"]:
    c.JupyterHub.subdomain_host = f"https://{room['host']}:{room['port']}".removesuffix(":443")
    c.JupyterHub.cookie_host_prefix_enabled = True
c.JupyterHub.db_url = "sqlite:////run/workshop-room/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(STATE / "cookie_secret")
c.JupyterHub.template_paths = [str(HERE)]
# JupyterLab servers and the proxy keep running when the hub restarts.
c.JupyterHub.cleanup_servers = False
c.JupyterHub.last_activity_interval = 30  # each update also restores the routes of a restarted proxy
c.JupyterHub.api_page_max_limit = 1000  # so that the board gets all users in one page
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.auth_token = secret("proxy.token")

c.JupyterHub.spawner_class = PersonSpawner
c.Spawner.default_url = "/lab/tree/START.md"
c.Spawner.start_timeout = c.Spawner.http_timeout = 300  # twenty people may log in at once
c.Spawner.disable_user_config = True  # use only the installation's configuration
c.Spawner.args = ["--ServerApp.allow_remote_access=True", "--ServerApp.jpserver_extensions={'nbgitpuller': False}"]

c.Authenticator.username_pattern = r"[a-z][a-z0-9_-]{0,30}\Z"
c.JupyterHub.authenticator_class = RoomAuthenticator
c.PAMAuthenticator.service = "workshop-room"
c.Authenticator.allow_all = room["open"]
if not room["open"]:
    c.Authenticator.allowed_users = allowed = {*room["people"], people.INSTRUCTOR}
    c.Authenticator.allow_existing_users = False
    # Block people who were removed from the list; the hub then stops their servers when it starts.
    c.Authenticator.blocked_users = set(grp.getgrnam("workshop-room").gr_mem) - allowed

c.JupyterHub.load_roles = [
    # No scopes for creating tokens, which would outlive a session, or for sharing servers.
    {"name": "user", "scopes": ["read:users!user", "servers!user", "access:servers!user", "users:activity!user"]},
    {
        "name": "instructor",
        "users": [people.INSTRUCTOR],
        # Safe only with subdomains: on the same origin, a person's pages could act as the instructor.
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
