"""Definitions that every stage depends on.

- `quantities`: the classes that `problem` uses; `parameters`: the schema of params.yaml; `steps`: the row frequency.
- `errors`: exceptions that tell the user what to do next; `files`: atomic writes; `origin`: the source of data.
"""
