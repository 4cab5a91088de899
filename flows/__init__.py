"""Prefect flows, and the command line that starts them."""

import os

# Read by Prefect when it is first imported. The first start of its built-in server takes longer
# than the default of 20 seconds on a small machine; nothing is reported to anyone.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What MLflow does for us is no news to who runs a step; its warnings stay.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# Its links open on a page for language models; ours are logged.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# Read by OpenMP when torch is first imported. Its threads spin while they wait, which slows
# training where another process wants the cores (benchmarks/README.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
