"""Two machines that are reached by SSH, each with its own root folder, processes and network, and a cluster on them."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from machines import PIPES, Machine, connect, machine
from workplace import BIN

EXAMPLE = Path(__file__).parent.parent
NOT_COPIED = shutil.ignore_patterns("tests", "__pycache__", "mlflow.db", "mlruns")
PROGRAMS = ("ip", "unshare", "setpriv", "ssh", "/usr/sbin/sshd")
KEY = "/etc/ssh/ssh_host_ed25519_key"
NODES = {"node1.example.org": "10.98.1.2", "node2.example.org": "10.98.2.2"}
ADDRESSES = "".join(f"{address} {name}\n" for name, address in NODES.items())
COMMAND = r"^python search.py --cluster tcp://10\.98\.1\.2:8786$"
ACCOUNT = "useradd --create-home --shell /bin/bash --password '*' alice"


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Machine, list[Machine]]]:
    """A laptop with the example, and two nodes that it reaches by SSH as `alice`; packets pass through the laptop."""
    with (
        machine("laptop", folder / "laptop") as laptop,
        machine("node1", folder / "node1") as first,
        machine("node2", folder / "node2") as second,
    ):
        connect(laptop, [first, second])
        laptop.run("echo 1 > /proc/sys/net/ipv4/ip_forward")
        laptop.run(f"{ACCOUNT}; mkdir ~alice/.ssh; ssh-keygen -q -t ed25519 -N '' -f ~alice/.ssh/id_ed25519")
        home = laptop.path("/home/alice")
        shutil.copytree(EXAMPLE, home / "example", ignore=NOT_COPIED)
        for number, (name, node) in enumerate(zip(NODES, (first, second), strict=True), start=1):
            node.run(f"{ACCOUNT}; ip route add default via 10.98.{number}.1; mkdir ~alice/.ssh ~alice/digits_search")
            node.run(f"ln -s {shlex.quote(sys.prefix)} ~alice/digits_search/.venv")
            node.run(f"rm -f {KEY}*; ssh-keygen -q -t ed25519 -N '' -f {KEY}")
            shutil.copy(home / ".ssh/id_ed25519.pub", node.path("/home/alice/.ssh/authorized_keys"))
            node.run(f"chown -R alice: ~alice; /usr/sbin/sshd -o UsePAM=no -o HostKey={KEY}")
            with (home / ".ssh/known_hosts").open("a") as file:
                file.write(f"{name} {node.path(f'{KEY}.pub').read_text()}")
        for each in (laptop, first, second):
            with each.path("/etc/hosts").open("a") as file:
                file.write(ADDRESSES)
        laptop.run("chown -R alice: ~alice")
        yield laptop, [first, second]


def typed(laptop: Machine, command: str) -> list[str]:
    """Return the words that type a command in the example's folder on the laptop."""
    return laptop.command("bash", "-euc", f"cd ~/example; export PATH={BIN}:$PATH; {command}", user="alice")


@contextlib.contextmanager
def ssh_cluster(laptop: Machine) -> Iterator[str]:
    """Type `python ssh_cluster.py`; yield the command that it prints, and press Enter at the end."""
    options = PIPES | {"stdin": subprocess.PIPE, "bufsize": 1}
    with subprocess.Popen(typed(laptop, "exec python ssh_cluster.py"), **options) as cluster:
        try:
            printed = ""
            while not (command := re.search(COMMAND, printed, re.MULTILINE)):
                line = cluster.stdout.readline()
                assert line, printed
                printed += line
            yield command[0]
            rest, _ = cluster.communicate("\n", timeout=60)
            assert cluster.returncode == 0, rest
        finally:
            cluster.kill()
