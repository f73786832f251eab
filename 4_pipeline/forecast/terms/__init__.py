"""What every stage depends on.

- `quantities` are the words of `problem`; `parameters` what params.yaml may hold; `steps` the time between two rows.
- `errors` say what failed and what to do; `files` writes files whole; `origin` is where data come from.
"""
