"""The Prefect server that a command's flow runs report to."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

from dynammo.errors import DynammoError

_settings = ExitStack()  # never left: what is set holds for as long as the process lives
_START = 120.0  # seconds; the first start makes the database, which takes long on a small machine


def ready() -> None:
    """Have a Prefect server that answers, before any work: the one that is set, or one of our own.

    Ours is a thread of this process on a free port of 127.0.0.1, until the process ends, however it
    does; its records are in Prefect's database like any other's. Nobody stops it: once the
    interpreter shuts down, its background worker spins where it should end, for seconds. The server
    that Prefect would start by itself is a second interpreter, which imports everything again and
    outlives a command that was killed.

    Raises:
        DynammoError: the server that is set does not answer or asks for a login, or ours does not
            start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.cli.doctor import check_prefect

    if PREFECT_API_URL.value():
        check_prefect()
        return
    _settings.enter_context(temporary_settings({PREFECT_API_URL: _start()}))


def _start() -> str:
    """Start the server and return its address."""
    import uvicorn
    from prefect.server.api.server import create_app

    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, args=[[listening]], daemon=True, name="Prefect")
    thread.start()
    until = time.monotonic() + _START
    while not server.started and thread.is_alive() and time.monotonic() < until:
        thread.join(0.05)
    if not server.started:
        raise DynammoError("Prefect's temporary server does not start: dynammo doctor")
    return f"http://127.0.0.1:{listening.getsockname()[1]}/api"
