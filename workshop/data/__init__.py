"""Hourly frames: where they come from, what they must hold, how they are prepared, split and drawn."""
