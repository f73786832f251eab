"""A worker's kernels: each has a supervisor and, if safe, is forked from a process with preloaded modules."""
