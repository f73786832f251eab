"""The life of a model.

- `store` reaches the tracking server; `tracking` opens runs that carry their lineage;
  `storage` logs models, and loads them without running their code.
- `regressor` holds the models of chapter 4 and their search, `compat` what they need of scikit-learn's inside;
  `evaluation` measures how good a model is, `scores` holds the result.
- `registry` is the registered model behind `mlflow_gate`: its rules, what it learned from; `lineage` adds the links
  that the pipeline knows. `report` is the page on a week.
"""

__all__ = ["evaluation", "lineage", "registry", "regressor", "report", "scores", "storage", "store", "tracking"]
