"""Tell people when a flow fails or a version is refused: by mail, chat, webhook, as Apprise can.

`DYNAMMO_NOTIFY` names where to, as a URL of https://github.com/caronc/apprise, such as
`mailto://...`, `slack://...` or `json://localhost/hook`; several are separated by spaces.
"""

from __future__ import annotations

import os
from typing import Any

from apprise import Apprise


def tell(title: str, text: str) -> bool:
    """Send a message; whether it was sent. Without `DYNAMMO_NOTIFY` nothing is."""
    addresses = os.environ.get("DYNAMMO_NOTIFY", "").split()
    if not addresses:
        return False
    sender = Apprise()
    for address in addresses:
        sender.add(address)
    return bool(sender.notify(title=title, body=text))


def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """The hook of a flow that failed; one within another is told of by that."""
    if flow_run.parent_task_run_id is None:
        tell(f"{flow_run.name} failed", str(state.message))
