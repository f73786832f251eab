"""From raw files to a model in production: `raw` makes one `table`, models `learn` from it, `govern` decides, `show` is
for people.

`problem` says what is predicted from what, `terms` holds what every stage depends on, such as `quantities` and
`parameters`; `tracking` reaches MLflow.
"""
