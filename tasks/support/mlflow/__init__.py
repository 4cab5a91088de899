"""Runs, the served model and the champion in MLflow."""
