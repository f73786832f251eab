"""Servers: what `workshop up` starts and watches, `workshop backup` keeps, and JupyterLab shows."""
