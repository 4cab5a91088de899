"""The command line `dynammo`."""

import flows.cli.delta
import flows.cli.explain
import flows.cli.federate
import flows.cli.learner
import flows.cli.monitor
import flows.cli.page
import flows.cli.plan
import flows.cli.trust  # noqa: F401  (these add their commands)
from flows.cli.main import app

__all__ = ["app"]
