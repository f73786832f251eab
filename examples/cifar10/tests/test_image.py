"""The image of the CI job, built from its Containerfile; it takes minutes, and `make containers` runs it."""

from __future__ import annotations

import pytest
from podman_machine import machine
from workplace import copy_tree

pytestmark = [pytest.mark.soak, pytest.mark.privileged]
# The public base image has git; the one that is made here has not.
BASE = """podman build --tag localhost/python - <<'END'
FROM localhost/debian:12
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends git
END
podman build --build-arg BASE=localhost/python --tag cifar10 --file Containerfile ../..
"""
# What the job does, less git and the bucket: the stages, with one epoch.
RUN = "sed -i 's/max_epochs: .*/max_epochs: 1/' params.yaml; python images.py digits data/digits; dvc repro"


def test_image_of_the_job_runs_the_pipeline(tmp_path):
    """The Containerfile builds, and its environment trains and evaluates a model."""
    example = copy_tree(tmp_path / "clone") / "examples" / "cifar10"
    with machine(tmp_path / "machine", example) as host:
        host.types(BASE)
        mount = f"--volume={tmp_path}/clone:/work --workdir=/work/examples/cifar10"
        host.types(f'podman run --rm --network=none {mount} cifar10 sh -ec "$RUN"', RUN=RUN)
    assert (example / "metrics.json").exists()
