"""The CI job's image, built from its Containerfile; `make containers` runs this test, which takes minutes."""

from __future__ import annotations

import pytest
from podman_machine import machine
from workplace import copy_tree

pytestmark = [pytest.mark.soak, pytest.mark.privileged]
# Unlike the public base image, this one has no git.
BASE = """podman build --tag localhost/python - <<'END'
FROM localhost/debian:12
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends git
END
podman build --build-arg BASE=localhost/python --tag cifar10 --file Containerfile ../..
"""
# The job's stages with one epoch, without git and the bucket.
RUN = "sed -i 's/max_epochs: .*/max_epochs: 1/' params.yaml; python images.py digits data/digits; dvc repro"


def test_image_of_the_ci_job_runs_the_pipeline(tmp_path):
    """The Containerfile builds, and its environment trains and evaluates a model."""
    example = copy_tree(tmp_path / "clone") / "examples" / "cifar10"
    with machine(tmp_path / "machine", example) as host:
        host.types(BASE)
        mount = f"--volume={tmp_path}/clone:/work --workdir=/work/examples/cifar10"
        host.types(f'podman run --rm --network=none {mount} cifar10 sh -ec "$RUN"', RUN=RUN)
    assert (example / "metrics.json").exists()
