"""Kernels on a worker: kept by a process each, forked from one that has the imports done."""
