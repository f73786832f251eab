"""Kernels on a worker: each has a supervisor, and is forked from a process that has imported modules."""
