"""Hourly frames of weather and generation, from raw files to figures.

- `sources` puts the raw files of the sample, of Open Power System Data or of an own file into a folder; `sample` makes
  the sample.
- `raw` reads CSV files strictly, `own_file` those of a user; `prepare` turns raw files into the processed table;
  `schema` says what that table holds, reads and writes it; `validation` says what is unusual in it.
- `features` are the inputs and targets of the models; `split` holds out hours and names weeks.
- `prediction_requests` reads the weather that a visitor hands in; `figures` draws frames.
"""

__all__ = [
    "features",
    "figures",
    "own_file",
    "prediction_requests",
    "prepare",
    "raw",
    "sample",
    "schema",
    "sources",
    "split",
    "validation",
]
