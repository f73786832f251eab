"""Keep MLflow's artifacts on an FTP server, whole or not at all, and checked on read."""
