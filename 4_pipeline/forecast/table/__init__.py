"""The processed table.

- `schema`: its columns, units and ranges; `processed`: reading and writing its files; `reading`: a strict CSV reader.
- `features`: inputs and targets of the models; `split`: training, validation and test rows, and weeks.
"""
