"""From raw files to the processed table.

- `sources` fetches the raw files of the sample, of Open Power System Data or of your own CSV; `sample` simulates the
  sample.
- `own_file` reads your own CSV, `prepare` turns raw files into the processed table, and `validation` checks it.
"""
