"""People with a laptop and an account on the server, who run the README's commands."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from machines import PIPES, Machine, connect, machine
from workplace import copy_tree, required

README = (Path(__file__).parent.parent / "README.md").read_text()
CONFIG = re.search(r"```text\n(Host posts\n.*?)```", README, flags=re.DOTALL)[1]
INSTALL = "python3 -m venv .venv\n.venv/bin/pip install --requirement requirements.txt"
SSHD = r"""HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
SetEnv WORKSHOP_DASK_WORKERS=1 "DASK_PAPERMILL_DASK__KERNEL_IMPORTS=[\"mlflow\",\"pandas\",\"sklearn.ensemble\"]"
"""
# Answers SSH's prompts with the administrator's fingerprint or the account's password.
ANSWERS = '#!/bin/sh\ncase "$1" in *fingerprint*) cat ~/fingerprint ;; *passphrase*) echo ;; *) echo secret ;; esac\n'
STORE = "/scratch/dvc_data_cache"
FOLDER = "workshop/examples/posts_over_ssh"
TIMEOUT_SECONDS = 1800  # per block, on a busy machine
KEY = "/etc/ssh/ssh_host_ed25519_key"


def blocks(heading: str) -> list[str]:
    """Return the commands of a section of the README, block by block."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", README, flags=re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^```bash\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


@dataclass
class Person:
    """A person with an account on the server and a laptop."""

    name: str
    laptop: Machine
    server: Machine
    linked: bool = True  # links the installed packages instead of installing
    ports: dict[str, str] = field(default_factory=dict)

    def start(self, text: str) -> subprocess.Popen:
        """Start commands in this person's terminal; lines after `ssh posts` run on the server."""
        text = self.adapt(text)
        if self.linked:
            text = text.replace(INSTALL, f"ln -s {shlex.quote(sys.prefix)} .venv")
        text = re.sub(
            r"^ssh posts\n(.*?)^exit$", r"ssh posts <<'END'\nset -e\n\1END", text, flags=re.DOTALL | re.MULTILINE
        )
        state = '{ export -p; printf "cd %q\\n" "$PWD"; } > ~/.terminal'
        command = self.laptop.command("bash", "-c", f"cd; . ~/.terminal; set -e; {text}\n{state}", user=self.name)
        return subprocess.Popen(command, **PIPES)

    def run(self, text: str, *, fails: bool = False) -> str:
        """Run commands; return their output."""
        process = self.start(text)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
        assert bool(process.returncode) == fails, f"{self.name}: {text}\n{output}"
        return output

    def adapt(self, text: str) -> str:
        """Return a text from the README with this person's name and ports."""
        text = re.sub(r"\b(8786|8787|5000)\b", lambda port: self.ports.get(port[0], port[0]), text)
        return text.replace("alice", self.name)

    def install(self) -> str:
        """Follow the README's first section on laptop and server; return the output."""
        self.receive_fingerprint()
        output = ""
        for block in blocks("What you need on the server"):
            if block.startswith("sudo"):  # the administrator; both people share the group
                lines = block.replace("sudo ", "").replace("alice", self.name).replace("groupadd", "groupadd --force")
                self.server.run(lines)
            else:
                output += self.run(block)
            for port, server in {"8786": "Dask scheduler", "8787": "Dask workers", "5000": "MLflow tracking"}.items():
                if match := re.search(rf"{server}: .*127\.0\.0\.1:(\d+)", output):
                    self.ports[port] = match[1]
            if (folder := self.laptop.path(f"/home/{self.name}/.ssh")).exists():
                (folder / "config").write_text(self.adapt(CONFIG))
        return output

    def receive_fingerprint(self) -> None:
        """Store the fingerprint of the server's key for the prompts."""
        fingerprint = self.server.run(f"ssh-keygen -lf {KEY}.pub").split()[1]
        self.laptop.path(f"/home/{self.name}/fingerprint").write_text(fingerprint)


def start_ssh(server: Machine) -> None:
    """Start the SSH server with a new host key."""
    server.path("/etc/ssh/sshd_config").write_text(SSHD)
    server.run(f"rm -f {KEY}*; ssh-keygen -q -t ed25519 -N '' -f {KEY}; pkill -F /run/sshd.pid || true")
    server.run("until /usr/sbin/sshd; do sleep 0.2; done", timeout=60)  # once the previous server has released the port


def create_accounts(person: Person) -> None:
    """Create a person's accounts on server and laptop; a script answers SSH's prompts."""
    add = f"useradd --create-home --shell /bin/bash {person.name}"
    person.server.run(f"{add} --password $(openssl passwd -6 secret)")
    person.laptop.run(add)
    home = person.laptop.path(f"/home/{person.name}")
    (home / "answers").write_text(ANSWERS)
    (home / "answers").chmod(0o755)
    (home / ".terminal").write_text("export SSH_ASKPASS=~/answers SSH_ASKPASS_REQUIRE=force PAGER=cat\n")
    name = f"git config --global user.name {person.name}; git config --global user.email {person.name}@example.org"
    address = "git config --global url.posts:/srv/workshop.git.insteadOf https://example.org/workshop.git"
    person.laptop.run(f"export HOME=~{person.name}; {name}; {address}; chown -R {person.name}: ~{person.name}")


@contextlib.contextmanager
def alice_and_bob(folder: Path, wheels: Path | None = None) -> Iterator[tuple[Person, Person]]:
    """Start a server and two laptops with SSH and git.

    With ``wheels``, a folder of packages, both people install separately.
    """
    for program in ("ip", "unshare", "setpriv", "ssh", "/usr/sbin/sshd"):
        required(program, shutil.which(program))
    shared = [wheels] if wheels else []
    with (
        machine("server", folder / "server", *shared) as server,
        machine("laptop1", folder / "laptop1", *shared) as first,
        machine("laptop2", folder / "laptop2", *shared) as second,
    ):
        connect(server, [first, second])
        start_ssh(server)
        people = Person("alice", first, server, not wheels), Person("bob", second, server, not wheels)
        for person in people:
            create_accounts(person)
        if wheels:
            for each in (server, first, second):
                each.installs_from(wheels)
        work = copy_tree(folder / "work")
        subprocess.run(["git", "clone", "--quiet", "--bare", work, folder / "workshop.git"], check=True)
        shutil.copytree(folder / "workshop.git", server.path("/srv/workshop.git"))
        address = "url./srv/workshop.git.insteadOf https://example.org/workshop.git"
        server.run(
            "chmod -R a+rwX /srv/workshop.git; git config --system --replace-all safe.directory '*';"
            f" git config --system {address}"
        )
        # A small disk for the large files.
        server.run("mount -t tmpfs -o size=200m tmpfs /scratch")
        yield people
