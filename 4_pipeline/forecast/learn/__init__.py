"""Table to model to scores.

- `models` holds the models and their search, `network` all that knows Keras: a copy may leave it out.
- `evaluation` measures how good a model is; `storage` logs models, and loads them without running their code.
"""
