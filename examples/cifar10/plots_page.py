"""Write DVC's page of plots with Vega in it, so that it shows its figures without a network.

python plots_page.py [REVISION ...]    compares as `dvc plots diff` does, and writes dvc_plots/index.html
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import vl_convert

VEGA_LITE = "5.20"  # of the templates of DVC 3: 5.x

with tempfile.TemporaryDirectory() as folder:
    template = Path(folder, "page.html")
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    template.write_text(f"<!DOCTYPE html><title>Plots</title><script>{script}</script>{{plot_divs}}")
    command = ["dvc", "plots", "diff", "--html-template", template, *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)
