"""The lock is within the ranges of pyproject.toml and has files for every supported Python; CI runs on each."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from workplace import BIN, ROOT, by_night, clean_environment, run_program

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = ROOT / "requirements.txt"
PIPELINE = tomllib.loads((ROOT / "4_pipeline" / "pyproject.toml").read_text())
RANGES = [
    requirement
    for requirement in map(
        Requirement,
        PROJECT["project"]["dependencies"]
        + PIPELINE["project"]["dependencies"]
        + PIPELINE["project"]["optional-dependencies"]["look"]
        + PROJECT["dependency-groups"]["tests"],
    )
    if requirement.name != "forecast" and not (ROOT / "packages" / requirement.name).exists()
]
PLATFORMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"]
PYTHONS = ["3.11", "3.13"]


def pins():
    """The versions of each pinned package; more than one if Python versions need different ones."""
    versions = {}
    for line in (LOCK.read_text() + (ROOT / "tests" / "requirements.txt").read_text()).splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;]+)", line):
            versions.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return versions


@pytest.mark.parametrize("requirement", RANGES, ids=lambda requirement: requirement.name)
def test_lock_has_a_version_within_each_range(requirement):
    """The locks were compiled from the current pyproject.toml."""
    versions = pins()[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(version) for version in versions)


def test_lock_has_only_pins_and_local_packages():
    """All entries are exact versions from the user's index or packages of this repository; no other path or URL."""
    lines = LOCK.read_text().splitlines()
    pinned = [line for line in lines if line.strip() and not line.startswith("-e ")]
    assert all(re.match(r"#|[A-Za-z0-9._\[\],-]+==\S+", line) for line in pinned)
    folders = {".", "4_pipeline"} | {f"packages/{folder.name}" for folder in (ROOT / "packages").iterdir()}
    assert {line.split()[1] for line in lines if line.startswith("-e ")} == folders
    assert "://" not in "".join(lines)


@pytest.mark.walk
@pytest.mark.parametrize("platform", [PLATFORMS[0], *by_night(*PLATFORMS[1:])])
@pytest.mark.parametrize("python", [*by_night(PYTHONS[0]), PYTHONS[1]])
def test_lock_resolves(platform, python):
    """Every pin has a wheel or a source for every supported Python and platform."""
    name = "tensorflow-cpu" if platform.startswith("x86_64") else "tensorflow"
    options = ["--python-version", python, "--python-platform", platform, "--only-binary", name]
    command = [BIN / "uv", "pip", "compile", "--quiet", *options, "--no-header", "--no-annotate", "requirements.txt"]
    done = run_program(*command, cwd=ROOT, env=clean_environment())
    assert re.findall(r"^(tensorflow\S*)==", done.stdout, re.MULTILINE) == [name]
