"""Table to model to scores.

- `models` holds the models and their search, `compat` what they need of scikit-learn's inside.
- `evaluation` measures how good a model is, `scores` holds the result; `storage` logs models, and loads them without
  running their code.
"""
