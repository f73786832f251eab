"""From raw files to a model in production: `raw` makes one `table`, models `learn` from it, `govern` decides, `show` is
for people.

`problem` says what is predicted from what, in the terms of `quantities`; `parameters` what params.yaml may hold;
`tracking` reaches MLflow.
"""
