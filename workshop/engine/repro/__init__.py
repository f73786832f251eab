"""The stages of a pipeline, side by side: `workshop repro`."""
