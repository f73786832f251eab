"""`make offline` fills a folder from which a machine without a network is installed."""

from __future__ import annotations

import subprocess

import pytest
from workplace import BIN, copy_tree, git, run_program

PYTHON = (BIN / "python").resolve()  # the Python that this environment was made with
# What the package imports for its settings, what builds it, and a package that the index has as a source only.
NEEDED = (
    "uv", "setuptools", "click", "pydantic", "pydantic-core", "pydantic-settings", "annotated-types",
    "psutil", "typing-extensions", "typing-inspection", "python-dotenv", "platformdirs", "antlr4-python3-runtime",
)  # fmt: skip


@pytest.mark.night
@pytest.mark.privileged
def test_machine_without_a_network_installs_from_the_folder(tmp_path):
    """Clone from the folder, `make` with OFFLINE; the blank in the path is that of many a USB stick."""
    root, folder, clone = copy_tree(tmp_path / "clone"), tmp_path / "USB stick", tmp_path / "workshop"
    lines = (root / "requirements.txt").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split("#")[0].split("==")[0].strip() in (*NEEDED, "-e .", "-e 4_pipeline")]
    (root / "requirements.txt").write_text("".join(kept))
    git(root, "commit", "--quiet", "--all", "--message", "Need little")
    command = ["make", "-o", ".venv/installed", f"BIN={BIN}", "offline", f"FOLDER={folder}"]
    subprocess.run(command, cwd=root, check=True)
    script = f"""
        set -e
        ip link set lo up
        git clone --quiet "{folder}/workshop.bundle" {clone}
        cd {clone}
        make .venv/installed PYTHON={PYTHON} OFFLINE="{folder}"
        .venv/bin/python -c 'import workshop.settings, antlr4'
    """
    environment = {"PATH": f"{PYTHON.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    environment |= {"UV_CACHE_DIR": str(tmp_path / "cache")}
    run_program("unshare", "--net", "sh", "-c", script, env=environment)
    assert (clone / ".env").read_text() == f"WORKSHOP_OFFLINE={folder}\n"
