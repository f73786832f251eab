"""The dashboard, a web application: `python -m dashboard` in the folder of `dvc.yaml` serves it.

`app` makes and serves it, `follower` holds what it shows, `pages` are its pages and `api` answers programs.
"""
