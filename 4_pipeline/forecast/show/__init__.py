"""For people: `figures` of hours and scores, `monitoring` of how good the predictions are, the weekly `report`."""
