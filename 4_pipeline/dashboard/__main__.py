"""Serve the dashboard: `python -m dashboard` in the folder of `dvc.yaml`."""

from .app import main

main(prog_name="python -m dashboard")
