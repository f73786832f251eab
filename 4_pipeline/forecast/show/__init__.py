"""Human-readable output: `figures`, `monitoring` of the quality of predictions, and the weekly `report`."""
