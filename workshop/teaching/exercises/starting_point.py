"""The exercises of the chapter `starting_point`."""
