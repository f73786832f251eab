"""Write DVC's plots page with Vega embedded, so that the page works offline.

python plots_page.py [REVISION ...]    runs `dvc plots diff` and writes dvc_plots/index.html
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import vl_convert

VEGA_LITE = "5.20"  # DVC 3's templates need 5.x

with tempfile.TemporaryDirectory() as folder:
    template = Path(folder, "page.html")
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    template.write_text(f"<!DOCTYPE html><title>Plots</title><script>{script}</script>{{plot_divs}}")
    command = ["dvc", "plots", "diff", "--html-template", template, *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)
