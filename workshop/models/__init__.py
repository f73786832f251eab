"""The life of a model: tracked, scored, promoted, loaded."""
