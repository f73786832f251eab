"""Benchmarks of this repository's tools against standard tools, both measured in the same run."""
