"""Promotion to production.

- `gate`: the rules, the refit and the lineage of the registered model, on top of `mlflow_gate`.
- `state`: files that tell DVC about the tracking server; `tidy`: search for unreferenced runs.
"""
