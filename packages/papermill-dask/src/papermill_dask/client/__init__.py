"""The client, in papermill's process: find a worker, send it the notebook, save the outputs."""
