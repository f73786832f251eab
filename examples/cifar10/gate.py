"""Refuse a model that is worse than the branch's by more than `gate.max_drop`, unless ACCEPT_WORSE is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

max_drop = yaml.safe_load(Path("params.yaml").read_text())["gate"]["max_drop"]
new = json.loads(Path("metrics.json").read_text())["accuracy"]
committed = subprocess.run(["git", "show", "HEAD:./metrics.json"], capture_output=True, text=True, check=False)
if committed.returncode == 0:
    old = json.loads(committed.stdout)["accuracy"]
    print(f"accuracy {new:.3f}, was {old:.3f}")
    if old - new > max_drop and not os.environ.get("ACCEPT_WORSE"):
        sys.exit(
            f"Refused: the accuracy would fall from {old:.3f} to {new:.3f}; max_drop in params.yaml is {max_drop}.\n"
            "Nothing was committed. Start the job with ACCEPT_WORSE=1 if this is meant."
        )
else:
    print(f"accuracy {new:.3f}, the first model")
