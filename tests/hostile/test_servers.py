"""Attacks on `make up`: by a web page, by another account of the machine, by one with the password.

One start of the servers, as a user makes it, serves all of them; it takes about a minute.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from dynammo.errors import DynammoError
from flows.cli.doctor import check_prefect
from scripts import access
from tasks.support.mlflow.runs import mlflow_client

ROOT = Path(__file__).parents[2]
EVIL = "https://evil.example"

pytestmark = pytest.mark.timeout(600)  # servers.py waits for 240 seconds for each of the three


class Servers(NamedTuple):
    """Running servers of a copy of the project."""

    folder: Path
    prefect: str
    mlflow: str
    page: str
    login: dict[str, str]  # what the user sources
    printed: str

    @property
    def prefect_login(self) -> tuple[str, str]:
        user, _, password = self.login["PREFECT_API_AUTH_STRING"].partition(":")
        return user, password

    @property
    def mlflow_login(self) -> tuple[str, str]:
        return self.login["MLFLOW_TRACKING_USERNAME"], self.login["MLFLOW_TRACKING_PASSWORD"]

    @property
    def secrets(self) -> list[str]:
        token = self.login["DYNAMMO_APP_TOKEN"]
        return [self.prefect_login[1], self.mlflow_login[1], token]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DYNAMMO_SERVER", "").endswith(f" in {self.folder}"):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("project").resolve()
    for name in ("scripts", "flows", "tasks", "dynammo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    prefect, mlflow, page = free_ports(3)
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {
        "PREFECT_PORT": str(prefect),
        "MLFLOW_PORT": str(mlflow),
        "APP_PORT": str(page),
        "AWS_ACCESS_KEY_ID": "named",
        "AWS_SECRET_ACCESS_KEY": "not named",
        "DYNAMMO_WORKER_ENV": "AWS_ACCESS_KEY_ID",
    }

    def command(name: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "scripts/servers.py", name]
        return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)

    try:
        up = command("up")
        assert up.returncode == 0, up.stdout + up.stderr
        lines = (folder / ".dynammo/servers/env").read_text().splitlines()
        exports = [shlex.split(line)[1].partition("=") for line in lines if line[:1] != "#"]
        yield Servers(
            folder,
            f"http://127.0.0.1:{prefect}",
            f"http://127.0.0.1:{mlflow}",
            f"http://127.0.0.1:{page}",
            {name: value for name, _, value in exports},
            up.stdout + up.stderr,
        )
    finally:
        down = command("down")
    assert down.returncode == 0, down.stderr


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def shell_steps(marker: Path) -> list[dict[str, Any]]:
    return [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {marker}"}}]


def ask(client: httpx.Client, method: str, path: str, body: object = None) -> Any:
    for _ in range(20):
        answer = client.request(method, path, json=body)
        if answer.status_code != 503:  # its database is busy: Prefect's clients ask again, too
            break
        time.sleep(0.5)
    return answer.json() if answer.content else {}


def attack(client: httpx.Client, name: str, **deployment: Any) -> str | None:
    """Have a deployment run in the pool of the worker. Returns the flow run, if it was let in."""
    flow = ask(client, "POST", "/api/flows/", {"name": "evil"}).get("id")
    asked = {"name": name, "flow_id": flow, "work_pool_name": "dynammo"} | deployment
    made = ask(client, "POST", "/api/deployments/", asked).get("id")
    run: str | None = ask(client, "POST", f"/api/deployments/{made}/create_flow_run", {}).get("id")
    return run


def end_of(client: httpx.Client, run: str) -> dict[str, Any]:
    """The state of a flow run when the worker has done with it."""
    for _ in range(120):
        state: dict[str, Any] = ask(client, "GET", f"/api/flow_runs/{run}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(0.5)
    raise AssertionError(f"still {state}")


def test_a_web_page_gets_no_permission(servers: Servers) -> None:
    for server, path in (
        (servers.prefect, "/api/deployments/"),
        (servers.mlflow, "/api/2.0/mlflow/runs/create"),
    ):
        asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "content-type"
        answer = httpx.options(server + path, headers=asked)
        assert answer.headers.get("Access-Control-Allow-Origin") not in ("*", EVIL)
        # The server's own page under its other name is let in.
        own = server.replace("127.0.0.1", "localhost")
        answer = httpx.options(server + path, headers=asked | {"Origin": own})
        assert answer.headers.get("Access-Control-Allow-Origin") == own


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example"])
def test_a_name_that_is_made_to_lead_here_is_refused(servers: Servers, host: str) -> None:
    """DNS rebinding: the page is of the server's own origin, so CORS does not apply."""
    for server, path, login, refusal in (
        (servers.prefect, "/api/flows/filter", servers.prefect_login, 400),
        (servers.prefect, "/", servers.prefect_login, 400),
        (servers.mlflow, "/", servers.mlflow_login, 403),
    ):
        headers = {"Host": host.format(port=server.rpartition(":")[2])}
        method = "POST" if path.endswith("filter") else "GET"
        answer = httpx.request(method, server + path, headers=headers, auth=login)
        assert answer.status_code == refusal
        assert httpx.request(method, server + path, auth=login).status_code in (200, 307)


def test_no_request_without_a_password_is_served(servers: Servers) -> None:
    for path in ("/api/flows/", "/api/deployments/", "/api/block_documents/", "/api/variables/"):
        answer = httpx.post(servers.prefect + path, json={})
        assert answer.status_code == 401, path
        # As a page can send without asking for permission first.
        plain = {"Content-Type": "text/plain", "Origin": EVIL}
        assert httpx.post(servers.prefect + path, headers=plain, content="{}").status_code == 401
    for path in ("/", "/graphql", "/get-artifact", "/api/2.0/mlflow/experiments/search"):
        assert httpx.get(servers.mlflow + path).status_code == 401, path
    for guess in ("admin:password1234", "admin:password", "dynammo:dynammo", "dynammo:"):
        auth = tuple(guess.split(":"))
        assert httpx.post(f"{servers.prefect}/api/flows/filter", auth=auth).status_code == 401
        assert httpx.get(servers.mlflow, auth=auth).status_code == 401


def test_a_login_that_the_browser_stored_is_of_no_use_to_another_site(servers: Servers) -> None:
    """MLflow's: the browser adds it to requests of other pages, too."""
    answer = httpx.post(
        f"{servers.mlflow}/api/2.0/mlflow/experiments/create",
        headers={"Origin": EVIL, "Content-Type": "text/plain"},
        content='{"name": "evil"}',
        auth=servers.mlflow_login,
    )
    assert answer.status_code == 403
    # Prefect's 401 asks the browser for nothing, so it has nothing to add.
    assert "WWW-Authenticate" not in httpx.get(f"{servers.prefect}/api/version").headers


def test_code_of_someone_without_the_password_is_not_run(servers: Servers, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    with httpx.Client(base_url=servers.prefect, headers={"Origin": EVIL}) as page:
        run = attack(
            page,
            "page",
            entrypoint="flows/incremental.py:incremental",
            pull_steps=shell_steps(marker),
        )
        if run:
            end_of(page, run)
    assert run is None
    assert not marker.exists()


def test_the_worker_runs_nothing_but_the_flows_of_the_project(
    servers: Servers, tmp_path: Path
) -> None:
    """Even for someone with the password: by the deployment, by its job variables, by the pool."""
    marker = tmp_path / "owned"
    script = tmp_path / "evil.py"
    script.write_text(
        f"from pathlib import Path\nfrom prefect import flow\nPath({str(marker)!r}).touch()\n"
        "@flow\ndef evil():\n    pass\n"
    )
    ours = "flows/incremental.py:incremental"
    with httpx.Client(base_url=servers.prefect, auth=servers.prefect_login, timeout=30) as client:
        path = "/api/work_pools/dynammo"
        pool = ask(client, "GET", path)["base_job_template"]
        pool["job_configuration"]["command"] = f"touch {marker}"
        ask(client, "PATCH", path, {"base_job_template": pool})
        assert ask(client, "GET", path)["base_job_template"] == pool
        attacks = {
            "pull steps": {"entrypoint": ours, "pull_steps": shell_steps(marker)},
            "file": {"entrypoint": f"{script}:evil"},
            "module": {"entrypoint": "evil.evil"},
            "command": {"entrypoint": ours, "job_variables": {"command": f"touch {marker}"}},
            "environment": {
                "entrypoint": ours,
                "job_variables": {"env": {"PREFECT__FLOW_ENTRYPOINT": f"{script}:evil"}},
            },
        }
        runs = {name: attack(client, name, **given) for name, given in attacks.items()}
        assert all(runs.values())
        for name, run in runs.items():
            state = end_of(client, str(run))
            assert state["type"] == "CRASHED", name
            assert "RefusedError" in state["message"], name
        # Not by the pool either: what runs is the flow, which does not know this setting.
        own = ask(client, "GET", "/api/deployments/name/dynammo/incremental")["id"]
        asked = {"parameters": {"overrides": {"no.such": 1}}}
        run = ask(client, "POST", f"/api/deployments/{own}/create_flow_run", asked)["id"]
        assert "exited with status code: 1" in end_of(client, run)["message"]
        log = (servers.folder / ".dynammo/servers/worker.log").read_text()
        assert "1 configuration error" in log
    assert not marker.exists()


def test_secrets_are_in_files_of_the_user_alone(servers: Servers) -> None:
    folder = servers.folder / ".dynammo/servers"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secrets = servers.secrets
    assert all(len(secret) >= 40 for secret in secrets) and len(set(secrets)) == 3
    holders = {
        path.name: path
        for path in servers.folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)
    }
    assert holders.keys() == {"secrets.json", "env", "mlflow_auth.ini"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders.values()} == {0o600}
    assert not [secret for secret in secrets if secret in servers.printed]


def test_secrets_are_on_no_command_line(servers: Servers) -> None:
    secrets = servers.secrets
    lines = [" ".join(process.cmdline()) for process in servers.processes()]
    assert len(lines) >= 4
    assert not [line for line in lines for secret in secrets if secret in line]


def test_the_worker_is_given_no_credentials_but_those_named(servers: Servers) -> None:
    workers = [p for p in servers.processes() if "project_worker.py" in " ".join(p.cmdline())]
    assert workers
    for worker in workers:
        environment = worker.environ()
        assert environment["AWS_ACCESS_KEY_ID"] == "named"
        assert "AWS_SECRET_ACCESS_KEY" not in environment
        assert "PREFECT_SERVER_API_AUTH_STRING" not in environment


def test_the_page_asks_for_its_token(servers: Servers) -> None:
    with httpx.Client(base_url=servers.page, follow_redirects=True) as client:
        asked = client.get("/")
        assert asked.status_code == 401 and "dynammo learn" not in asked.text
        assert client.post("/learners/x/change/learn").status_code == 401
        entered = client.get("/", params={"token": servers.login["DYNAMMO_APP_TOKEN"]})
        assert entered.status_code == 200 and "dynammo learn NAME FOLDER" in entered.text


def test_the_user_is_let_in_and_others_are_told_how(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "source .dynammo/servers/env" in servers.printed
    url = {PREFECT_API_URL: servers.login["PREFECT_API_URL"]}
    login = {PREFECT_API_AUTH_STRING: servers.login["PREFECT_API_AUTH_STRING"]}
    with temporary_settings(url | login):
        assert check_prefect() == f"server answers at {servers.prefect}/api"
    advice = r"asks for a login: source \.dynammo/servers/env"
    with temporary_settings(url), pytest.raises(DynammoError, match=advice):
        check_prefect()

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, servers.login[name])
    with mlflow_client() as client:
        assert client.search_experiments()
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(DynammoError, match=advice), mlflow_client() as client:
        client.search_experiments()


def test_the_viewer_of_mlflow_sees_all_and_changes_nothing(servers: Servers) -> None:
    lines = (servers.folder / ".dynammo/servers/viewer").read_text().splitlines()
    login = dict(shlex.split(line)[1].split("=", 1) for line in lines if line[:1] != "#")
    assert set(login.values()).isdisjoint(
        servers.login[name] for name in ("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING")
    )
    asked = [
        ("runs/create", {"experiment_id": "0"}),
        ("experiments/delete", {"experiment_id": "0"}),
        ("model-versions/create", {"name": "dynammo-skin", "source": "/tmp/x"}),
        ("registered-models/alias", {"name": "dynammo-skin", "alias": "champion", "version": "1"}),
        ("users/create", {"username": "other", "password": "of-my-own-12"}),
    ]
    base = f"{servers.mlflow}/api/2.0/mlflow"
    made = {"name": "dynammo-skin"}
    assert httpx.post(f"{base}/registered-models/create", json=made, auth=servers.mlflow_login)
    with httpx.Client(base_url=base, timeout=60) as client:
        client.auth = (login["MLFLOW_TRACKING_USERNAME"], login["MLFLOW_TRACKING_PASSWORD"])
        found = client.get("/experiments/search", params={"max_results": 9}).json()
        assert [own["name"] for own in found["experiments"]] == ["Default"]
        assert client.get("/registered-models/get", params=made).status_code == 200
        for path, body in asked:
            assert client.post(f"/{path}", json=body).status_code == 403, path
        client.auth = servers.mlflow_login
        assert client.post("/runs/create", json={"experiment_id": "0"}).status_code == 200


def test_secrets_are_made_once(tmp_path: Path) -> None:
    first = access.own_secrets(tmp_path / "a")
    assert access.own_secrets(tmp_path / "a") == first
    assert access.own_secrets(tmp_path / "b") != first


def test_a_secret_that_others_could_read_is_not_used(tmp_path: Path) -> None:
    access.own_secrets(tmp_path)
    (tmp_path / "secrets.json").chmod(0o640)
    with pytest.raises(
        access.AccessError, match=r"was open to other accounts: `make down`, remove"
    ):
        access.own_secrets(tmp_path)


def test_new_secrets_replace_the_users_of_mlflow(tmp_path: Path) -> None:
    """It takes a password only into an empty database, and would keep the old one."""
    users = tmp_path / access.MLFLOW_USERS
    access.own_secrets(tmp_path)
    users.write_text("users")
    access.own_secrets(tmp_path)
    assert users.exists()
    (tmp_path / "secrets.json").unlink()
    access.own_secrets(tmp_path)
    assert not users.exists()


def test_processes_are_given_what_a_run_needs(tmp_path: Path) -> None:
    needed = {"PATH": "/bin", "HOME": "/home/me", "LC_ALL": "C", "DYNAMMO_HOME": "/cache"}
    needed |= {"https_proxy": "http://proxy", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2"}
    secret = dict.fromkeys(
        (
            *("AWS_SESSION_TOKEN", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "PREFECT_API_KEY"),
            *("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        ),
        "x",
    )
    assert access.minimal(needed | secret) == needed
    grant = {access.GRANT: "AWS_SESSION_TOKEN, SSH_AUTH_SOCK"}
    granted = {"AWS_SESSION_TOKEN": "x", "SSH_AUTH_SOCK": "x"}
    assert access.minimal(needed | secret | grant) == needed | grant | granted
