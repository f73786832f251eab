"""Serve the dashboard on the address that the settings name: `python -m dashboard` in the folder `4_pipeline`."""

from .app import main

main()
