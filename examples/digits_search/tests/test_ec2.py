"""The README's commands for EC2, typed from top to bottom against a simulation whose instances are containers.

It takes some minutes, needs root, podman and a registry, and installs moto and awscli; CI does not run it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ssh_nodes import EXAMPLE, NOT_COPIED
from test_digits_search import BLOCKS, MOST_SECONDS
from workplace import BIN, clean_environment, required, running, wait_for

pytestmark = pytest.mark.skipif(
    "WORKSHOP_REQUIRE_ALL" in os.environ or "CI" in os.environ, reason="containers as instances: never in CI"
)
PROGRAMS = ["podman", "buildah", "runc", "mmdebstrap", "docker-registry", "unshare", "nsenter"]
BASE_IMAGE = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-venv,ca-certificates", "bookworm"]
AMAZON = ["moto[server]==5.2.5", "awscli==1.46.3"]
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
    "registries.conf": '[[registry]]\nlocation = "127.0.0.1:5000"\ninsecure = true\n',
    "registry.yml": "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
    "http: {{addr: '127.0.0.1:5000'}}\n",
    # `podman build` on this machine's network, where PyPI is, and from a base that was made here.
    "bin/podman": f"""#!/bin/sh
[ "$1" = build ] || exec {shutil.which("podman")} "$@"
shift
exec nsenter --net={{folder}}/proc/{os.getpid()}/ns/net buildah build --network host --isolation chroot \\
  --volume {CERTIFICATES}:{CERTIFICATES}:ro --build-arg BASE=localhost/debian:12 "$@"
""",
}
# What must exist before the stack.
PREPARE = """
podman import base.tar localhost/debian:12
podman network create --subnet 10.97.0.0/24 ec2
VPC=$(aws ec2 create-vpc --cidr-block 10.97.0.0/16 --query Vpc.VpcId --output text)
SUBNET=$(aws ec2 create-subnet --vpc-id "$VPC" --cidr-block 10.97.0.0/24 --query Subnet.SubnetId --output text)
SECURITY_GROUP=$(aws ec2 create-security-group --group-name dask --description dask --vpc-id "$VPC" \\
  --query GroupId --output text)
aws ec2 create-key-pair --key-name me
aws iam create-instance-profile --instance-profile-name reader
REGISTRY=127.0.0.1:5000 KEY_NAME=me INSTANCE_PROFILE=reader
"""


@dataclass
class Cloud:
    """A folder with a copy of the example, and the process in whose namespaces everything runs."""

    folder: Path
    pid: int
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str | Path) -> list[str]:
        """Return the command that runs words there."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", *map(str, words)]

    def types(self, text: str) -> str:
        """Type commands in the one terminal, which keeps its variables; return what they print."""
        state = self.folder / "terminal"
        script = f"set -eao pipefail; . {state}; cd {self.folder}/example; {text}\nexport -p > {state}"
        options = {"env": self.environment, "timeout": 2 * MOST_SECONDS, "capture_output": True, "text": True}
        done = subprocess.run(self.command("bash", "-c", script), **options)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def instances(self) -> dict[str, str]:
        """Return the user data of each instance that runs, by its identifier."""
        query = "Reservations[].Instances[?State.Name=='running'].InstanceId"
        ids = self.types(f'aws ec2 describe-instances --output text --query "{query}"').split()
        show = "aws ec2 describe-instance-attribute --attribute userData --query UserData.Value --output text"
        return {name: self.types(f"{show} --instance-id {name} | base64 --decode") for name in ids}

    def hosts(self) -> set[str]:
        """Return the addresses of the machines that have workers, as the scheduler knows them."""
        code = "import sys, distributed; print(*distributed.Client(sys.argv[1]).scheduler_info(-1)['workers'])"
        return {name.rsplit(":", 1)[0] for name in self.types(f'python -c "{code}" $SCHEDULER').split()}


@pytest.fixture
def cloud(tmp_path) -> Iterator[Cloud]:
    """The simulated EC2, and a registry; afterwards no container, image, network rule, process or file is left."""
    required("root on Linux", hasattr(os, "geteuid") and os.geteuid() == 0)
    for program in PROGRAMS:
        required(program, shutil.which(program))
    folder = tmp_path / f"digits-{os.getpid()}"
    shutil.copytree(EXAMPLE, folder / "example", ignore=NOT_COPIED)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    for command in (
        [*BASE_IMAGE, folder / "example/base.tar"],
        [BIN / "uv", "venv", "--quiet", "--python", BIN / "python", folder / "aws"],
        [BIN / "uv", "pip", "install", "--quiet", "--python", folder / "aws/bin/python", *AMAZON],
    ):
        subprocess.run(command, check=True, timeout=MOST_SECONDS)
    environment = clean_environment() | {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:5001", "AWS_MAX_ATTEMPTS": "1",
        **{f"CONTAINERS_{name}": str(folder / file) for name, file in (
            ("CONF", "containers.conf"), ("STORAGE_CONF", "storage.conf"), ("REGISTRIES_CONF", "registries.conf"))},
    }  # fmt: skip
    environment["PATH"] = f"{folder}/bin:{environment['PATH']}:{folder}/aws/bin"
    (folder / "terminal").touch()
    (folder / "proc").mkdir()
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-ec", SETUP]
    outer = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare], cwd=folder, env=environment)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    cloud = Cloud(folder, 0, environment)
    try:
        pid = int(wait_for(lambda: children.read_text().strip()))
        cloud.pid = pid
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
        registry = cloud.command("docker-registry", "serve", folder / "registry.yml")
        ec2 = cloud.command(folder / "aws/bin/python", Path(__file__).with_name("simulated_ec2.py"), "5001", folder)
        with (
            running(registry, environment, folder, lambda log: "listening on" in log),
            running(ec2, environment, folder, lambda log: "Running on" in log),
        ):
            yield cloud
            cloud.types("podman rm --all --force --time 0")
    finally:
        outer.kill()
        outer.wait()
        for each in sorted(Path("/sys/fs/cgroup").glob(f"**/{folder.name}"), reverse=True):
            for group in [*sorted(each.glob("**/"), reverse=True)]:
                group.rmdir()
        shutil.rmtree(folder)


def test_stack_from_creation_to_deletion(cloud):
    """Build, push, create, search, scale, lose an instance, delete: as the README says, and nothing is left."""
    build, create, search, update, delete = BLOCKS[-5:]
    cloud.types(PREPARE)
    cloud.types(build)
    cloud.types("podman rmi --all --force")  # what runs was pulled from the registry
    assert "tcp://10.97.0." in cloud.types(create)
    cloud.types(search.split("python")[0])
    (first,) = wait_for(cloud.hosts)
    with contextlib.ExitStack() as stack:
        typed = cloud.command("bash", "-c", f". {cloud.folder}/terminal; cd {cloud.folder}/example; {search}")
        running_search = stack.enter_context(
            running(typed, cloud.environment, cloud.folder, lambda log: re.search(r"Done +\d+ out of 882", log))
        )
        cloud.types(update)
        wait_for(lambda: len(cloud.hosts()) == 3)
        assert first in cloud.hosts()
        before = cloud.instances()
        lost = next(name for name, data in reversed(before.items()) if "dask worker" in data)
        cloud.types(f"aws ec2 terminate-instances --instance-ids {lost}")
        wait_for(lambda: len(cloud.instances()) == 4)
        wait_for(lambda: len(cloud.hosts()) == 3)
        assert lost not in cloud.instances()
        running_search.process.wait(2 * MOST_SECONDS)
        printed = running_search.log.read_text()
    assert "Done 882 out of 882" in printed
    assert "'svc__C': 1.0, 'svc__class_weight': None, 'svc__gamma': 0.001" in printed
    for user_data in cloud.instances().values():
        assert "secret" not in user_data
        assert "AKIA" not in user_data
    cloud.types(delete)
    assert cloud.instances() == {}
    wait_for(lambda: json.loads(cloud.types("podman ps --all --format json")) == [])
