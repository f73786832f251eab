"""Shared by all tests; those in `template` are about solar and wind power and can be deleted with the sample."""
