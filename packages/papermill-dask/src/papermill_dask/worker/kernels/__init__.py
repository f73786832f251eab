"""A worker's kernels: each has a supervisor, and is forked from a process with preloaded modules."""
