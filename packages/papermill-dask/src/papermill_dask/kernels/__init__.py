"""Kernels on a worker: supervised by a process each, forked from one that has the imports done."""
