"""The README's commands for EC2, run in order against a simulation with containers as instances.

The test takes some minutes and needs root, podman and PyPI: only `python -m pytest -m soak` runs it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from laptops import EXAMPLE, TIMEOUT_SECONDS, Laptop, new_laptop
from test_digits_search import BLOCKS
from workplace import BIN, required, running, wait_for

wait = functools.partial(wait_for, seconds=TIMEOUT_SECONDS)
PROGRAMS = ("podman", "buildah", "runc", "mmdebstrap", "docker-registry")
PREPARE = """
python -m pip download --quiet --only-binary :all: --dest wheels --requirement {example}/requirements.txt
mmdebstrap --quiet --variant=minbase --include=python3-venv --customize-hook='copy-in wheels /' bookworm base.tar
uv venv --quiet --python {bin}/python aws
uv pip install --quiet --python aws/bin/python 'moto[server]==5.2.5' awscli==1.46.3 bcrypt==5.0.0
"""
CONTAINERS = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=9000:9000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# One user, with the password that the simulated Amazon issues.
REGISTRY = r"""
{shared}/aws/bin/python > htpasswd <<'END'
import bcrypt
print("AWS:" + bcrypt.hashpw(b"123456789012-auth-token", bcrypt.gensalt()).decode())
END
export REGISTRY_AUTH_HTPASSWD_PATH=$PWD/htpasswd
exec docker-registry serve /etc/docker/registry/config.yml
"""
# The resources that the README expects; the image has the packages, since the laptop has no network.
SETUP = r"""
printf '[[registry]]\nlocation = "127.0.0.1:5000"\ninsecure = true\n' > /etc/containers/registries.conf
mount -t tmpfs tmpfs /dev/shm
PATH=$PATH:{shared}/aws/bin AWS_ENDPOINT_URL=http://127.0.0.1:5001 AWS_DEFAULT_REGION=eu-central-1
AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE AWS_SECRET_ACCESS_KEY=a-secret AWS_MAX_ATTEMPTS=1 BUILDAH_ISOLATION=chroot
podman import --change ENV=PIP_NO_INDEX=1 --change ENV=PIP_FIND_LINKS=/wheels {shared}/base.tar \
  docker.io/library/python:3.11-slim
podman network create --subnet 172.31.0.0/20 ec2
SUBNET=$(aws ec2 describe-subnets --query Subnets[0].SubnetId --output text)
SECURITY_GROUP=$(aws ec2 describe-security-groups --query SecurityGroups[0].GroupId --output text)
aws ec2 create-key-pair --key-name me
aws iam create-instance-profile --instance-profile-name reader
REGISTRY=127.0.0.1:5000 KEY_NAME=me INSTANCE_PROFILE=reader
"""
INSTANCES = """for id in $(aws ec2 describe-instances --output text \\
  --query "Reservations[].Instances[?State.Name=='running'].InstanceId"); do
  echo $id $(aws ec2 describe-instance-attribute --attribute userData --instance-id $id \\
    --query UserData.Value --output text | base64 --decode)
done"""
HOSTS = """python -c 'import os, distributed
print(*distributed.Client(os.environ["SCHEDULER"], timeout=300).scheduler_info(-1)["workers"])'"""

NAMES = HOSTS.replace('["workers"])', '["workers"].values())')


@pytest.fixture
def laptop(tmp_path) -> Iterator[Laptop]:
    """A laptop with podman, a registry and a simulated EC2; all containers, processes and files are removed."""
    for program in PROGRAMS:
        required(program, shutil.which(program))
    required("Python 3.11, as in Debian 12", sys.version_info[:2] == (3, 11))
    shared = tmp_path / f"digits-{os.getpid()}"
    shared.mkdir()
    prepare = f"PATH={BIN}:$PATH; {PREPARE.format(example=EXAMPLE, bin=BIN)}"
    subprocess.run(["bash", "-euc", prepare], cwd=shared, check=True, timeout=TIMEOUT_SECONDS)
    try:
        with new_laptop(tmp_path, shared) as laptop:
            laptop.machine.path("/etc/containers/containers.conf").write_text(CONTAINERS)
            registry = laptop.command(REGISTRY.format(shared=shared))
            ec2 = laptop.command(f"exec {shared}/aws/bin/python {EXAMPLE}/tests/simulated_ec2.py 5001 {shared.name}")
            with (
                running(registry, dict(os.environ), tmp_path, lambda log: "listening on" in log),
                running(ec2, dict(os.environ), tmp_path, lambda log: "Running on" in log),
            ):
                laptop.run(SETUP.format(shared=shared))
                yield laptop
    finally:
        shutil.rmtree(shared)
        for group in sorted(Path("/sys/fs/cgroup").glob(f"*/{shared.name}/**/"), reverse=True):
            wait_for(lambda group=group: subprocess.run(["rmdir", group], check=False).returncode == 0)


def worker_addresses(laptop: Laptop) -> set[str]:
    """Return the addresses of the instances with workers."""
    return set(re.findall(r"tcp://([\d.]+):", laptop.run(HOSTS)))


def instances(laptop: Laptop) -> dict[str, str]:
    """Return the user data of each running instance, by its id."""
    return dict(line.split(maxsplit=1) for line in laptop.run(INSTANCES).splitlines())


@pytest.mark.soak
@pytest.mark.privileged
def test_stack_from_creation_to_deletion(laptop):
    """The README's commands build, push, create, search, scale and delete; a lost instance is replaced."""
    build, create, search, update, delete = BLOCKS[-5:]
    assert "authentication required" in laptop.run(build.replace("podman login", "cat >/dev/null; :"), code=125)
    laptop.run(build.replace("aws ecr create-repository", "true"))
    laptop.run("podman rmi --all --force")  # the instances must pull from the registry
    create = create.replace(
        "ParameterKey=Contact", "ParameterKey=IdleTimeout,ParameterValue='3 minutes' ParameterKey=Contact"
    )
    assert re.search(r"tcp://172\.31\.\d+\.\d+:8786", laptop.run(create))
    laptop.run(search.split("python")[0])
    (first,) = wait(lambda: worker_addresses(laptop))
    with running(laptop.command(search), dict(os.environ), EXAMPLE, lambda log: "Using backend" in log) as program:
        wait(lambda: re.search(r"Done +\d+ out of 882", program.log.read_text()))
        laptop.run(update)
        wait(lambda: len(worker_addresses(laptop)) == 3)
        assert first in worker_addresses(laptop)
        before = instances(laptop)
        lost = next(name for name, data in reversed(before.items()) if "dask worker" in data)
        laptop.run(f"aws ec2 terminate-instances --instance-ids {lost}")
        wait(lambda: len(instances(laptop)) == 4)
        wait(lambda: len(worker_addresses(laptop)) == 3)
        assert lost not in instances(laptop)
        program.process.wait(2 * TIMEOUT_SECONDS)
        output = program.log.read_text()
    assert "Done 882 out of 882" in output
    assert "'svc__C': 1.0, 'svc__class_weight': None, 'svc__gamma': 0.001" in output
    assert not re.search("secret|AKIA|auth-token", str(instances(laptop)))
    assert "ip-172-31-" in laptop.run(NAMES)
    workers = laptop.run("""eval "$(aws cloudformation describe-stacks --stack-name digits --output text \\
      --query "Stacks[0].Outputs[?OutputKey=='ListWorkers'].OutputValue")" """)
    assert len(re.findall(r"172\.31\.\d+\.\d+ *\| *running", workers)) == 3
    # After the idle timeout the scheduler stops, and its instance scales the group to zero.
    wait(lambda: not any("dask worker" in data for data in instances(laptop).values()))
    laptop.run(delete)
    assert instances(laptop) == {}
    wait(lambda: laptop.run("podman ps --all --quiet") == "")
