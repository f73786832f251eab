"""What all tests share; those in `template` are about sun and wind, and can be deleted with the sample."""
