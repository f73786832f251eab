"""The dashboard, a Dash application: `python -m dashboard` in the folder of `dvc.yaml` serves it.

`app` builds and serves it, `follower` holds its state, `pages` are its pages and `api` is the HTTP API.
"""
