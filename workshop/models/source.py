"""The part of this package that a logged model takes along, so that it answers to raw weather wherever it is served."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = "code"  # where MLflow keeps a model's `code_paths`
PACKAGE = Path(__file__).resolve().parents[1]
MODULES = (
    "__init__.py", "errors.py", "data/__init__.py", "data/capacity.py", "data/features.py", "data/scan.py",
    "data/schema.py", "data/tables.py", "data/thresholds.py", "data/units.py", "models/__init__.py",
    "models/regressor.py",
)  # fmt: skip
FILES = frozenset(f"{FOLDER}/{PACKAGE.name}/{module}" for module in MODULES)


def copy_into(folder: Path) -> Path:
    """Copy the package's modules that a model needs into ``folder`` and return the package there, for `code_paths`."""
    package = Path(folder) / PACKAGE.name
    for module in MODULES:
        (package / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / module, package / module)
    return package


def compare(folder: Path, name: str) -> None:
    """Warn when the code in a model's folder is not what is installed here, which is what answers for it here."""
    pairs = {module: (PACKAGE / module, folder / FOLDER / PACKAGE.name / module) for module in MODULES}
    other = [module for module, (here, there) in pairs.items() if there.exists() and not _are_equal(here, there)]
    if other:
        logger.warning("%s was logged with another version of %s; train it anew.", name, ", ".join(other))


def _are_equal(here: Path, there: Path) -> bool:
    # By size first: what lies there may be as large as it likes.
    return here.stat().st_size == there.stat().st_size and here.read_bytes() == there.read_bytes()
