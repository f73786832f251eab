"""The servers that `workshop up` starts and supervises.

- `services` defines each server's command, address, ports and health check; `supervisor` starts and stops them.
- `tracking_server` builds MLflow's application and database; `backup` saves and restores the database and artifacts.
- `lab_tiles` defines the launcher tiles of JupyterLab.
"""

__all__ = ["backup", "lab_tiles", "services", "supervisor", "tracking_server"]
