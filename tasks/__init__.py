"""Prefect tasks: the pipeline's side effects (files, DVC, MLflow) around calls into dynammo."""
