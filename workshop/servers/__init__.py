"""The servers that `workshop up` starts and watches.

- `services` is the table of the servers: command, address, ports, health; `supervisor` starts, watches and stops them.
- `tracking_server` has MLflow's application and database; `backup` saves and restores what the servers keep.
- `lab_tiles` has the tiles of JupyterLab.
"""

__all__ = ["backup", "lab_tiles", "services", "supervisor", "tracking_server"]
