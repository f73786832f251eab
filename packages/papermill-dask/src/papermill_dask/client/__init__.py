"""Where papermill runs: it finds a worker, sends the notebook there, saves what comes back."""
