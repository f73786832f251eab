"""Files on their way: what a stage declares goes to a worker without shared disk, and comes back."""
