"""The exercises of the chapter `tracking`."""
