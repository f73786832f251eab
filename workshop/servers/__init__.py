"""Servers: what `workshop up` starts and watches, `workshop backup` keeps, and JupyterLab shows."""

__all__ = ["backup", "lab", "services", "supervisor"]
