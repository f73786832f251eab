"""Podman in new namespaces, with a base image that is built locally: no registry, and nothing left at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workplace import BIN, clean_environment, required, wait_for

PROGRAMS = [
    "podman", "buildah", "runc", "mmdebstrap", "netavark", "aardvark-dns", "iptables", "unshare", "nsenter", "setpriv"
]  # fmt: skip
PATHS = f"{os.environ['PATH']}:/usr/sbin:/usr/lib/podman:/usr/libexec/podman"  # of these programs
BASE_IMAGE = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-venv,ca-certificates", "bookworm"]
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Mounts, network and processes of their own: nothing of this is left once the first process is killed.
SETUP = """
mount --bind /proc proc
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm; mount -t proc proc /proc
ip link set lo up
exec sleep infinity
"""
FILES = {
    "containers.conf": """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=9000:9000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "{folder}/networks"
""",
    "storage.conf": '[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "/run/images"\n',
    # `podman build` on this machine's network, where the packages are, and from the base that was made here.
    "bin/podman": f"""#!/bin/sh
[ "$1" = build ] || exec {shutil.which("podman")} "$@"
shift
exec nsenter --net={{folder}}/proc/{os.getppid()}/ns/net buildah build --layers --network host --isolation chroot \\
  --volume {CERTIFICATES}:{CERTIFICATES}:ro --build-arg BASE=localhost/debian:12 "$@"
""",
}


@dataclass
class Machine:
    """A machine that has podman: its first process, the folder of its terminal, and the terminal's environment."""

    work: Path
    pid: int
    environment: dict[str, str]

    def command(self, *words: str | Path) -> list[str]:
        """Return the command that runs ``words`` on the machine."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", f"--wd={self.work}", *map(str, words)]

    def types(self, text: str, *, code: int = 0, **variables: str) -> str:
        """Type commands in a terminal; return their output."""
        # A file, for no process reads a pipe afterwards: without systemd podman complains into it about health checks
        # when a container dies, and would itself die of that instead of starting the container again.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                self.command("bash", "-euo", "pipefail", "-c", text), env=self.environment | variables,
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            output.seek(0)
            printed = output.read()
        assert done.returncode == code, f"{text}\n{printed}"
        return printed


@contextlib.contextmanager
def machine(folder: Path, work: Path) -> Iterator[Machine]:
    """Run a machine with podman in ``folder``; remove its containers, images, networks and processes at the end."""
    for program in PROGRAMS:
        required(program, shutil.which(program, path=PATHS))
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "proc").mkdir()
    environment = clean_environment() | {
        "CONTAINERS_CONF": f"{folder}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
        "PATH": f"{folder}/bin:{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-ec", SETUP]
    outer = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare], cwd=folder, env=environment)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    try:
        pid = int(wait_for(lambda: children.read_text().strip()))
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
        here = Machine(work, pid, environment)
        subprocess.run([*BASE_IMAGE, folder / "base.tar"], check=True)  # outside: needs Debian packages
        here.types(f"podman import {folder}/base.tar localhost/debian:12")
        yield here
        # A pod's containers depend on each other: remove them together.
        here.types("podman pod rm --all --force --time 0; podman rm --all --force --time 0")
    finally:
        outer.kill()
        outer.wait()
        for group in Path("/sys/fs/cgroup").glob("*/libpod_parent"):
            with contextlib.suppress(OSError):  # another machine uses it
                group.rmdir()
        shutil.rmtree(folder)
