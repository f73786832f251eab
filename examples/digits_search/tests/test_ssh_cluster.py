"""A cluster on two machines by SSH: each has its own root folder, processes and network."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from machines import PIPES, Machine, connect, machine
from test_digits_search import BEST, EXAMPLE, MOST_SECONDS, NOT_COPIED
from workplace import BIN, required, wait_for

KEY = "/etc/ssh/ssh_host_ed25519_key"
NODES = {"node1.example.org": "10.98.1.2", "node2.example.org": "10.98.2.2"}
ADDRESSES = "".join(f"{address} {name}\n" for name, address in NODES.items())
COMMAND = r"^python search.py --cluster tcp://10\.98\.1\.2:8786$"
ACCOUNT = "useradd --create-home --shell /bin/bash --password '*' alice"


@pytest.fixture
def machines(tmp_path) -> Iterator[tuple[Machine, list[Machine]]]:
    """A laptop with the example, and two nodes that it reaches by SSH as `alice`; packets pass through the laptop."""
    required("root on Linux", sys.platform == "linux" and os.geteuid() == 0)
    for program in ("ip", "unshare", "setpriv", "ssh", "/usr/sbin/sshd"):
        required(program, shutil.which(program))
    with (
        machine("laptop", tmp_path / "laptop") as laptop,
        machine("node1", tmp_path / "node1") as first,
        machine("node2", tmp_path / "node2") as second,
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


def test_cluster_by_ssh(machines):
    """`python ssh_cluster.py` prints the command that searches there; Enter ends the cluster, and all processes."""
    laptop, nodes = machines

    def typed(command: str) -> list[str]:
        return laptop.command("bash", "-euc", f"cd ~/example; export PATH={BIN}:$PATH; {command}", user="alice")

    options = PIPES | {"stdin": subprocess.PIPE, "bufsize": 1}
    with subprocess.Popen(typed("exec python ssh_cluster.py"), **options) as cluster:
        try:
            printed = ""
            while not (
                command := re.search(r"^python search.py --cluster tcp://10.98.1.2:8786$", printed, re.MULTILINE)
            ):
                line = cluster.stdout.readline()
                assert line, printed
                printed += line
            search = subprocess.run(typed(command[0]), **PIPES, check=False, timeout=MOST_SECONDS)
            assert search.returncode == 0, search.stdout
            assert BEST in search.stdout
            assert "processes=2 threads=2" in search.stdout
            assert all("dask" in node.run("pgrep --uid alice --list-full distributed") for node in nodes)
            rest, _ = cluster.communicate("\n", timeout=MOST_SECONDS)
            assert cluster.returncode == 0, rest
        finally:
            cluster.kill()
    for node in nodes:
        wait_for(lambda node=node: node.run("pgrep --uid alice --list-full || true") == "")
