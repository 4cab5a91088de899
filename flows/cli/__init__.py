"""The command line `dynammo`."""

import flows.cli.federate
import flows.cli.learner
import flows.cli.plan
import flows.cli.trust  # noqa: F401  (these add their commands)
from flows.cli.main import app

__all__ = ["app"]
