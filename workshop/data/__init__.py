"""Hourly frames of weather and generation, from raw files to figures.

- `sources` puts the raw files of the sample, of Open Power System Data or of an own file into a folder; `sample` makes
  the sample.
- `raw` reads CSV files strictly; `prepare` turns raw files into the processed table; `schema` says what that table
  holds; `validation` says what is unusual in it.
- `features` are the inputs and targets of the models; `split` holds out hours and names weeks.
- `prediction_requests` reads the weather that a visitor hands in; `figures` draws frames.
"""

__all__ = [
    "features",
    "figures",
    "prediction_requests",
    "prepare",
    "raw",
    "sample",
    "schema",
    "sources",
    "split",
    "validation",
]
