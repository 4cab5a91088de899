"""The command line `dynammo`."""

from flows.cli.main import app

__all__ = ["app"]
