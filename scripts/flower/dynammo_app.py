"""The app, for `flwr run`."""

from dynammo.federated.app import client, server

__all__ = ["client", "server"]
