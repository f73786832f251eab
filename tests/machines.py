"""A server and laptops, simulated by namespaces with their own root folder, users, processes and network."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workplace import ROOT, wait_for

CLONE_NEWNET = 0x40000000  # linux/sched.h
# A root folder of its own: the system's programs, a copy of /etc, empty folders for everything else, and the installed
# packages at their usual place. All of it is gone with its first process.
SETUP = """
set -e
mount -t tmpfs -o size=8g,mode=755 tmpfs "$ROOT_FOLDER"
cd "$ROOT_FOLDER"
for folder in /bin /lib* /sbin /usr /dev /sys; do
  if [ -L "$folder" ]; then cp -a "$folder" .; else mkdir ".$folder"; mount --rbind "$folder" ".$folder"; fi
done
cp -a /etc etc
for file in passwd group; do # without this machine's people, whose names a test may want
  awk -F: '$3 < 1000 || $3 > 60000' /etc/$file >etc/$file
done
mkdir -p home root run/sshd scratch srv proc var/log var/mail; mkdir -m 1777 tmp var/tmp
for folder in $SOFTWARE; do mkdir -p ".$folder"; mount --bind "$folder" ".$folder"; done
mount -t proc proc proc
hostname "$NAME"
ip link set lo up
exec chroot . sh -c 'sleep infinity & wait'
"""


@dataclass
class Machine:
    """A simulated machine: its first process and its name."""

    name: str
    process: subprocess.Popen
    pid: int

    def command(self, *words: str | Path, user: str = "root") -> list[str]:
        """Return the command that runs ``words`` on the machine as ``user``, with that user's environment."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--uts", "--root"]
        become = ["setpriv", "--reset-env", "--reuid", user, "--regid", user, "--init-groups"]
        return [*enter, *become, "env", "--chdir=/", "LC_ALL=C.UTF-8", *map(str, words)]

    def run(self, script: str, user: str = "root", **options) -> str:
        """Run a shell script on the machine and return its output; fail if it fails."""
        done = subprocess.run(self.command("bash", "-ec", script, user=user), **PIPES, **options, check=False)
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}"
        return done.stdout

    def installs_from(self, wheels: Path) -> None:
        """Let pip on the machine, which has no internet, install packages from a folder."""
        self.path("/etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")

    def path(self, path: str) -> Path:
        """Return the path of this machine's ``path`` from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def bytes_on_link(self) -> int:
        """Return the number of bytes received and sent."""
        lines = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()
        words = next(line.split() for line in lines if line.strip().startswith("eth0:"))
        return int(words[1]) + int(words[9])


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "stdin": subprocess.DEVNULL}


@contextlib.contextmanager
def network(pid: int) -> Iterator[None]:
    """Run this thread and the programs that it starts in the network namespace of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as outside, open(f"/proc/{pid}/ns/net") as inside:  # noqa: PTH123
        assert libc.setns(inside.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(outside.fileno(), CLONE_NEWNET) == 0


@contextlib.contextmanager
def machine(name: str, folder: Path, *shared: Path) -> Iterator[Machine]:
    """Run a machine with the ``shared`` folders; its processes, files and network are removed at the end."""
    folder.mkdir(parents=True)
    folders = dict.fromkeys(map(str, [ROOT, sys.prefix, sys.base_prefix, *shared]))
    software = " ".join(shlex.quote(path) for path in folders if path != "/usr")
    environment = os.environ | {"ROOT_FOLDER": str(folder), "NAME": name, "SOFTWARE": software}
    kinds = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    # The kernel kills the machine when the tests are killed.
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "sh", "-c", SETUP], env=environment, **PIPES
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def ready() -> int | None:
        assert process.poll() is None, process.stdout.read()
        pid = int((children.read_text() or "0").strip())
        return pid if pid and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sh\0-c\0sleep") else None

    try:
        yield Machine(name, process, wait_for(ready))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def connect(server: Machine, laptops: list[Machine]) -> None:
    """Connect each laptop to the server, 10.98.N.1 to 10.98.N.2, and add the server's name to the laptop's hosts."""
    for number, laptop in enumerate(laptops, start=1):
        ends = ["ip", "link", "add", f"to{number}", "netns", str(server.pid), "type", "veth"]
        subprocess.run([*ends, "peer", "name", "eth0", "netns", str(laptop.pid)], check=True)
        server.run(f"ip address add 10.98.{number}.1/24 dev to{number}; ip link set to{number} up")
        laptop.run(f"ip address add 10.98.{number}.2/24 dev eth0; ip link set eth0 up")
        laptop.run(f"echo 10.98.{number}.1 server.example.org >> /etc/hosts")
