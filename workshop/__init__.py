"""From a messy notebook to a governed pipeline: the code that the four chapters share."""

__version__ = "0.2.0"
