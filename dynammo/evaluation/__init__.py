"""Metrics, significance, and grids of experiments."""
