"""A laptop with the example, and machines reached over SSH, each with its own files, processes and network."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machines import PIPES, Machine, connect, machine
from workplace import BIN, required, running

EXAMPLE = Path(__file__).parent.parent
NOT_COPIED = shutil.ignore_patterns("tests", "__pycache__", "mlflow.db", "mlruns")
PROGRAMS = ("ip", "unshare", "setpriv", "nsenter", "ssh", "/usr/sbin/sshd")
NODES = ("node1.example.org", "node2.example.org")
TIMEOUT_SECONDS = 1800  # per command, on a busy machine


@dataclass
class Laptop:
    """A machine with the example, and one terminal whose variables persist."""

    machine: Machine

    def command(self, text: str) -> list[str]:
        """Return the command line that runs ``text`` in the terminal, in the example's folder."""
        state = "~/.terminal"
        script = f"set -eao pipefail; . {state}; cd ~/digits_search; {text}\nexport -p > {state}"
        return self.machine.command("bash", "-c", script)

    def run(self, text: str, *, code: int = 0) -> str:
        """Run commands; return their output."""
        done = subprocess.run(self.command(text), **PIPES, check=False, timeout=TIMEOUT_SECONDS)
        assert done.returncode == code, f"{text}\n{done.stdout}"
        return done.stdout


@contextlib.contextmanager
def new_laptop(folder: Path, *shared: Path) -> Iterator[Laptop]:
    """Start a laptop with access to the ``shared`` folders."""
    for program in PROGRAMS:
        required(program, shutil.which(program))
    with machine("laptop", folder / "laptop", *shared) as laptop:
        shutil.copytree(EXAMPLE, laptop.path("/root/digits_search"), ignore=NOT_COPIED)
        laptop.path("/root/.terminal").write_text(f"PATH={BIN}:$PATH\n")
        yield Laptop(laptop)


@contextlib.contextmanager
def two_nodes(folder: Path, *shared: Path) -> Iterator[tuple[Laptop, list[Machine]]]:
    """Start a laptop and two nodes reached over SSH; all share a key, and the laptop routes packets between them."""
    with (
        new_laptop(folder) as laptop,
        machine("node1", folder / "node1", *shared) as first,
        machine("node2", folder / "node2", *shared) as second,
    ):
        nodes = [first, second]
        connect(laptop.machine, nodes)
        laptop.run("echo 1 > /proc/sys/net/ipv4/ip_forward; mkdir ~/.ssh; ssh-keygen -q -N '' -f ~/.ssh/id_rsa -t rsa")
        for number, node in enumerate(nodes, start=1):
            shutil.copytree(laptop.machine.path("/root/.ssh"), node.path("/root/.ssh"))
            node.run(f"ip route add default via 10.98.{number}.1; cp ~/.ssh/id_rsa.pub ~/.ssh/authorized_keys")
            node.run(f"mkdir ~/digits_search; ln -s '{sys.prefix}' ~/digits_search/.venv")
            node.run("/usr/sbin/sshd -o UsePAM=no -o HostKey=/root/.ssh/id_rsa")
        for each in (laptop.machine, *nodes):
            for number, name in enumerate(NODES, start=1):
                each.run(f"echo 10.98.{number}.2 {name} >> /etc/hosts")
        laptop.run(f"echo {','.join(NODES)} $(cat ~/.ssh/id_rsa.pub) > ~/.ssh/known_hosts")
        yield laptop, nodes


@contextlib.contextmanager
def ssh_cluster(laptop: Laptop) -> Iterator[str]:
    """Run `python ssh_cluster.py`; yield the command that it prints, and press Enter at the end."""
    command = laptop.command("mkfifo ~/keyboard; exec python ssh_cluster.py <> ~/keyboard")
    pattern = re.compile(r"^python search.py --cluster tcp://10\.98\.1\.2:8786$", re.MULTILINE)
    with running(command, dict(os.environ), EXAMPLE, pattern.search) as cluster:
        yield cluster.ready[0]
        laptop.run("echo > ~/keyboard; rm ~/keyboard")
        assert cluster.process.wait(60) == 0, cluster.log.read_text()
