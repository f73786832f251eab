"""The processed table.

- `schema` says what it holds, reads and writes it; `reading` reads CSV files strictly.
- `features` are the inputs and targets of the models; `split` holds out rows and names weeks.
"""
