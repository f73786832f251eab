"""What every stage depends on: errors, parameters, quantities, steps of time, files and origins."""
