"""The README's first section with a real installation; other tests link the installed packages."""

from __future__ import annotations

import subprocess

import pytest
from people import alice_and_bob, blocks
from workplace import BIN, ROOT

pytestmark = [pytest.mark.privileged, pytest.mark.soak]


def test_readme_installs_server_and_laptop(tmp_path):
    """Both get a separate environment with packages from a folder in place of PyPI, and the pipeline runs."""
    wheels = tmp_path / "offline/wheels"
    command = ["make", "-o", ".venv/installed", f"BIN={BIN}", "offline", f"FOLDER={tmp_path}/offline"]
    subprocess.run(command, cwd=ROOT, check=True)
    with alice_and_bob(tmp_path / "machines", wheels) as (alice, _):
        assert "Successfully installed" in alice.install()
        assert "Running stage 'evaluate'" in alice.run(blocks("Run it")[0])
        for machine in (alice.server, alice.laptop):
            assert not machine.path("/home/alice/workshop/.venv").is_symlink()
            assert machine.path("/home/alice/workshop/.venv/bin/dvc").exists()
