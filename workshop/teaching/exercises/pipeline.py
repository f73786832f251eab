"""The exercises of the chapter `pipeline`."""
