"""Which images of old classes are kept."""
