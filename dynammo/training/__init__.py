"""Training adapters and networks."""
