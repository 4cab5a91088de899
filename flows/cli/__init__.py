"""The command line `dynammo`."""

import flows.cli.learner  # noqa: F401  (adds its commands)
from flows.cli.main import app

__all__ = ["app"]
