"""Benchmarks of this repository's tools against standard tools, both measured in the same run."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # tests.workplace imports its neighbours
