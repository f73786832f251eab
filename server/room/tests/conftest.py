"""Fixtures: a room on a simulated machine, and a laptop with browsers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from machines import connect, machine
from rooms import PEOPLE, SCRIPTS, Room
from workplace import ROOT, pytest_runtest_setup  # noqa: F401 - a hook


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Iterator[Room]:
    """Run setup.sh on a new machine, with one small disk for /home and the room's state."""
    folder = tmp_path_factory.mktemp("room")
    with machine("room", folder / "root") as server, machine("laptop", folder / "laptop") as laptop:
        connect(server, [laptop])
        server.run("mount -t tmpfs -o size=3g,mode=755 tmpfs /home; mount -t tmpfs -o mode=755 tmpfs /run")
        server.run("mkdir -p /home/.state /var/lib/workshop-room; mount --bind /home/.state /var/lib/workshop-room")
        server.path("/root/names.txt").write_text("\n".join(PEOPLE))
        # Packages are downloaded through the host's network, since the new machine has no internet access.
        online = ["nsenter", f"--target={server.pid}", "--mount", "--pid", "--root", "env", "--chdir=/", "bash", "-ec"]
        install = f"git clone --quiet {ROOT} /opt/workshop; make -C /opt/workshop .venv/room"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "MAKE"))
        }
        subprocess.run([*online, install], check=True, cwd="/", env=environment)
        built = Room(server, laptop)
        built.set_up("--people /root/names.txt --memory 1G")
        lines = server.path("/etc/workshop-room/passwords.txt").read_text().splitlines()
        built.passwords |= dict(line.split() for line in lines)
        yield built
        # pytest shows this output if a test failed.
        print(server.run("tail --lines=100 /var/lib/workshop-room/*.log"))
        server.run(f"{SCRIPTS}/room.sh stop")
        assert "workshop" not in server.run("nft list ruleset; ip link; ip netns list; ls /run/workshop-room")
