"""The processed table.

- `schema` says what it holds, and checks it; `processed` reads and writes its files; `reading` reads CSV strictly.
- `features` are the inputs and targets of the models; `split` holds out rows and names weeks.
"""
