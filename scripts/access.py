"""Who may use the servers of `make up`: its secrets, the user's login, the processes' environment.

Everything is in one folder that only the user can enter, in files that only the user can read. A
secret travels by file or environment, never on a command line, which every account can read.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shlex
import stat
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

USER = "dynammo"
VIEWER = "viewer"  # may look at everything in MLflow, and change nothing
MLFLOW_USERS = "mlflow_users.db"
GRANT = "DYNAMMO_WORKER_ENV"  # names of further variables that the worker and MLflow are given

_NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
}
_PREFIXES = ("LC_", "DYNAMMO_", "MLFLOW_", "PREFECT_", "OMP_", "GLOO_", "NCCL_")
_NEVER = (  # the user's account elsewhere, and what is the servers' own
    *("PREFECT_PROFILE", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_"),
    *("MLFLOW_AUTH_", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
)


class AccessError(Exception):
    """Secrets that cannot be used as they are. One line for the user."""


@dataclass(frozen=True)
class Secrets:
    """Made once for each installation."""

    prefect: str
    mlflow: str
    session: str  # signs what MLflow gives to browsers

    @property
    def page(self) -> str:
        """The page's token."""
        return self._derived("the page of the learners")

    @property
    def prefect_login(self) -> str:
        """As Prefect's page and PREFECT_API_AUTH_STRING take it."""
        return f"{USER}:{self.prefect}"

    @property
    def viewer(self) -> str:
        """The viewer's password."""
        return self._derived(VIEWER)

    def _derived(self, purpose: str) -> str:
        """It tells nothing of the others, and files made before it was needed stay valid."""
        return hmac.new(self.session.encode(), purpose.encode(), "sha256").hexdigest()


def own_secrets(folder: Path) -> Secrets:
    """The secrets of this installation; made, if there are none.

    Args:
        folder: where they are kept. Made, and closed to other accounts.

    Raises:
        AccessError: others could read them, or the file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / "secrets.json"
    if not path.exists():
        made = {field.name: secrets.token_urlsafe(32) for field in fields(Secrets)}
        # MLflow takes the password only into an empty database.
        (folder / MLFLOW_USERS).unlink(missing_ok=True)
        draft = _private_file(folder / f"secrets.{os.getpid()}", json.dumps(made))
        with suppress(FileExistsError):  # another process was faster: its secrets hold
            os.link(draft, path)
        draft.unlink()
    advice = f"`make down`, remove {path}, and start again: new ones are made"
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.getuid():
        raise AccessError(f"{path} was open to other accounts: {advice}")
    try:
        return Secrets(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise AccessError(f"{path} is damaged: {advice}") from None


def write_login(path: Path, variables: Mapping[str, str]) -> None:
    """Write the file that a user sources to be let in by the servers."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    draft = _private_file(
        path.with_name(f"{path.name}.{os.getpid()}"),
        f"# For your shell: source {path.name}. It holds passwords. Written by make up, make ui.\n"
        + exports,
    )
    draft.replace(path)


def write_mlflow_users(folder: Path, own: Secrets) -> Path:
    """Write the settings of MLflow's app `basic-auth`. Returns the file."""
    settings = {
        "default_permission": "READ",  # of further users, until the first grants more
        "database_uri": f"sqlite:///{folder / MLFLOW_USERS}",
        "admin_username": USER,
        "admin_password": own.mlflow,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        # Else a password's slow hash is computed for each request. One process serves, so
        # that what is remembered is never stale.
        "auth_cache_ttl_seconds": "300",
    }
    # "%" would name another setting.
    lines = [f"{name} = {value.replace('%', '%%')}" for name, value in settings.items()]
    path = folder / "mlflow_auth.ini"
    draft = _private_file(
        path.with_name(f"{path.name}.{os.getpid()}"), "\n".join(["[mlflow]", *lines, ""])
    )
    return draft.replace(path)


def make_viewer(server: str, own: Secrets) -> None:
    """Let the viewer into the MLflow server started here; as often as one likes.

    Raises:
        AccessError: the server refuses.
    """
    asked = Request(
        f"{server}/api/2.0/mlflow/users/create",
        json.dumps({"username": VIEWER, "password": own.viewer}).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Basic {b64encode(f'{USER}:{own.mlflow}'.encode()).decode()}",
        },
    )
    try:
        build_opener(ProxyHandler({})).open(asked, timeout=30).close()
    except HTTPError as error:
        said = error.read().decode(errors="replace")
        if "RESOURCE_ALREADY_EXISTS" not in said:
            raise AccessError(f"MLflow makes no user {VIEWER}: {said[:200]}") from None
    except OSError as error:
        raise AccessError(f"MLflow makes no user {VIEWER}: {error}") from None


def mlflow_variables(uri: str, own: Secrets, user: str = USER) -> dict[str, str]:
    """What a client of the MLflow server started here needs, as the user or the viewer."""
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": own.viewer if user == VIEWER else own.mlflow,
    }


def prefect_variables(server: str, own: Secrets) -> dict[str, str]:
    """What a client of the Prefect server started here needs."""
    return {"PREFECT_API_URL": f"{server}/api", "PREFECT_API_AUTH_STRING": own.prefect_login}


def minimal(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a run needs; no credentials but those that a user names.

    Args:
        environment: the user's. DYNAMMO_WORKER_ENV in it names further variables, with commas.
    """
    granted = {name.strip() for name in environment.get(GRANT, "").split(",")}
    return {
        name: value
        for name, value in environment.items()
        if name in granted
        or (name.startswith(_PREFIXES) and not name.startswith(_NEVER))
        or name in _NAMES
    }


def server_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's settings of the Prefect server, such as its database: for no other process."""
    return {k: v for k, v in environment.items() if k.startswith("PREFECT_SERVER_")}


def _private_file(path: Path, text: str) -> Path:
    """A new file that at no time anyone else could open."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path
