"""Output for people: `figures`, `monitoring` of the quality of predictions, and the weekly `report`."""
