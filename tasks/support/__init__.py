"""What the tasks stand on."""
