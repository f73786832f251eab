"""The helpers of the repository's tests; a copy of the example does not have this folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
sys.path += [str(ROOT / "tests"), str(ROOT / "4_pipeline" / "tests")]
