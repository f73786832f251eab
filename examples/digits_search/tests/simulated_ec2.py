"""moto's server with containers as instances: each runs its user data, at its private address.

Usage: `python simulated_ec2.py PORT CGROUP`. Two differences between moto and Amazon are patched.
"""

import base64
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from moto.autoscaling.models import FakeAutoScalingGroup
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance
from moto.server import main

PORT, CGROUP = sys.argv[1:]
DOCKER = re.compile(r"docker run((?: --detach)?)(?: --restart always)? --network host")
PODMAN = (
    r"podman run\1 --pull=always --network ec2 --cgroup-parent {cgroup} --ip {instance.private_ip} --name {instance.id}"
)


def update_group(cls, original_resource, cloudformation_json, **_):
    """Resize a group and keep its running instances; moto replaces all of them."""
    original_resource.set_desired_capacity(int(cloudformation_json["Properties"]["DesiredCapacity"]))
    return original_resource


def update_instance(cls, original_resource, **_):
    """Leave an instance unchanged; moto does not implement updates of instances."""
    return original_resource


def run_user_data(instance, script: str) -> None:
    """Run an instance's user data with podman, with a separate host name and registry login."""
    script = DOCKER.sub(PODMAN.format(instance=instance, cgroup=CGROUP), script).replace("docker", "podman")
    role = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
        "AWS_ACCESS_KEY_ID": "role",
        "AWS_SECRET_ACCESS_KEY": "role",
    }
    attributes = {
        "REGISTRY_AUTH_FILE": f"/tmp/{instance.id}.json",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    hostname = f"hostname() {{ echo ip-{instance.private_ip.replace('.', '-')}; }}"
    subprocess.run(["sh", "-c", f"{hostname}\n{script}"], env=os.environ | role | attributes, check=False)


def sync_containers() -> None:
    """Start a container for each instance, with its user data, and remove it when the instance ends."""
    started = set()
    while True:
        for instance in list(ec2_backends[DEFAULT_ACCOUNT_ID]["eu-central-1"].all_instances()):
            if instance.state == "running" and instance.id not in started:
                started.add(instance.id)
                data = instance.user_data  # str for the template's instance, an object for the group's
                script = base64.b64decode(data if isinstance(data, str) else data.as_bytes()).decode()
                threading.Thread(target=run_user_data, args=(instance, script), daemon=True).start()
            if instance.state == "terminated" and instance.id in started:
                started.remove(instance.id)
                subprocess.run(["podman", "rm", "--force", "--time=0", instance.id], check=True)
        time.sleep(0.5)


FakeAutoScalingGroup.update_from_cloudformation_json = classmethod(update_group)
Instance.update_from_cloudformation_json = classmethod(update_instance)
threading.Thread(target=sync_containers, daemon=True).start()
main(["--port", PORT])
