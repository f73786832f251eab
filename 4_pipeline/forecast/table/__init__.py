"""The processed table.

- `schema` says what it holds, and checks it; `reading` reads CSV files strictly; `processed` reads and writes its files.
- `features` are the inputs and targets of the models; `split` holds out rows and names weeks.
"""
