"""Raw files to one table.

- `sources` puts the raw files of the sample, of Open Power System Data or of an own file into a folder; `sample` makes
  the sample.
- `own_file` reads the file of a user; `prepare` turns raw files into the processed table; `validation` says what is
  unusual in it.
"""
