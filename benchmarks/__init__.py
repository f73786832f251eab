"""How fast the engine is, measured against the plain way in the same run."""
