"""The pipeline, from raw files to a model in production.

`raw` prepares the `table`, `learn` trains models, `govern` promotes them, `show` reports. `problem` defines targets and
inputs; `terms` has what every stage needs, such as `quantities` and `parameters`; `tracking` connects to MLflow.
"""
