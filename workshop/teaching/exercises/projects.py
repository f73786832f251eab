"""The exercises of the chapter `projects`."""
