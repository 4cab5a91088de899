"""Prefect's server, for requests to this machine's own names only: `prefect_app.py PORT`.

Prefect does not look at the Host header. A web page whose name is made to lead to 127.0.0.1 (DNS
rebinding) would then be of the server's own origin, and could read what needs no password.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings

HOST = "127.0.0.1"


def main(port: int) -> None:
    """Serve until a signal comes, as `prefect server start` does."""
    server = get_current_settings().server
    if not server.api.auth_string:
        sys.exit("error: PREFECT_SERVER_API_AUTH_STRING is not set: anyone could run code here")
    app = create_app(final=True)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    uvicorn.run(
        app,
        host=HOST,
        port=port,
        timeout_keep_alive=server.api.keepalive_timeout,
        ws_ping_interval=server.api.websocket_ping_interval,
        ws_ping_timeout=server.api.websocket_ping_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
