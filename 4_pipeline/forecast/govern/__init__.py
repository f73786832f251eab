"""What goes into production, and what is kept.

- `gate` is the registered model behind `mlflow_gate`: its rules, what it learned from, its lineage; `refit` fits again
  what passed.
- `state` writes down what DVC cannot see; `tidy` finds runs that nothing names.
"""
