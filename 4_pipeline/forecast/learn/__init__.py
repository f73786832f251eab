"""Train, evaluate and store models.

- `models`: the regressor and its hyperparameter search; `network`: everything that needs Keras, which is optional.
- `evaluation`: scores of a model; `storage`: logging models, and loading them without running their code.
"""
