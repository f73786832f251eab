"""From a messy notebook to a governed pipeline: the code shared by the four chapters."""

__version__ = "0.2.0"
