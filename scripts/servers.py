"""Prefect, MLflow, a worker and the page on this machine: `make up`, `make down`, `make ui`.

Every process started here carries the environment variable DYNAMMO_SERVER, and its children inherit
it. That is how they are found again: there is no pid file to go stale, and nothing else is stopped.
Logs and passwords are in .dynammo/servers/. Ports: PREFECT_PORT (4200),
MLFLOW_PORT (5000) and APP_PORT (5002).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NoReturn, TextIO
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import access
import psutil

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STATE = ROOT / ".dynammo"
LOGS = STATE / "servers"
LOGIN = LOGS / "env"
VIEWER = LOGS / "viewer"
HOST = "127.0.0.1"
POOL = "dynammo"
RUNS = "#/experiments?workflowType=machine_learning"  # its first page is for language models

COMMANDS = {  # how the first process of each is told from its children
    "prefect": "scripts/prefect_app.py",
    "mlflow": "mlflow server --app-name basic-auth",
    "worker": "scripts/project_worker.py",
    "page": "dynammo app",
}
MARK = "DYNAMMO_SERVER"  # "prefect in /path/of/the/project"
ADDRESS = "DYNAMMO_SERVER_ADDRESS"
START_SECONDS = 240  # a first start migrates databases
STOP_SECONDS = 20


def up() -> None:
    """Start what is not running yet, deploy the flow, and say how to use it."""
    with _lock():
        own = _secrets()
        theirs = _own_mlflow(own)
        prefect = _start_server("prefect", "PREFECT_PORT", 4200, _prefect_command, _prefect_env)
        mlflow = theirs or _start_server(
            "mlflow", "MLFLOW_PORT", 5000, _mlflow_command, _mlflow_env
        )
        _wait("prefect", lambda: _get(f"{prefect}/api/health"))
        if not theirs:
            _wait("mlflow", lambda: _get(f"{mlflow}/health"))
            _let_viewer_in(mlflow, own)
        login = access.prefect_variables(prefect, own)
        login |= {} if theirs else access.mlflow_variables(mlflow, own)
        access.write_login(LOGIN, login | {"DYNAMMO_APP_TOKEN": own.page})
        env = _environment() | login | {"MLFLOW_TRACKING_URI": mlflow}
        if not _main_process("worker"):
            _stop("worker")  # one that an earlier version started
            _deploy(env)
            _start("worker", ["python", COMMANDS["worker"]], env)
        page = _start_server(
            "page",
            "APP_PORT",
            5002,
            _page_command,
            lambda own, _: env | {"DYNAMMO_APP_TOKEN": own.page},
        )
        _wait("worker", lambda: "started!" in _log("worker").read_text(encoding="utf-8"))
        _wait("page", lambda: _listens(int(page.rpartition(":")[2])))
    file = LOGIN.relative_to(ROOT)
    programs = BIN.relative_to(ROOT) if BIN.is_relative_to(ROOT) else BIN
    login_of_mlflow = (
        "" if theirs else f"\n         user {access.USER}, password: MLFLOW_TRACKING_PASSWORD"
    )
    look = "" if theirs else f", and for who may only look {VIEWER.name} beside it"
    print(
        f"""
Prefect  {prefect}      its page asks for the value of PREFECT_API_AUTH_STRING
MLflow   {mlflow}/{RUNS}{login_of_mlflow}
Learners {page}      its page asks for the value of DYNAMMO_APP_TOKEN
Logins   {file}{look}, which only you can read
Logs     {LOGS.relative_to(ROOT)}/      Stop: make down

Run the deployment:
  source {file}
  {programs}/prefect deployment run dynammo/incremental --watch"""
    )


def down() -> None:
    """Stop what `up` started: the worker and its flow runs first, then the servers."""
    with _lock():
        found = False
        for name in ("page", "worker", "mlflow", "prefect"):
            if _processes(name):
                found = True
                print(f"stopping {name}")
                _stop(name)
        if not found:
            print("nothing to stop")


def ui() -> None:
    """Show the runs recorded in mlflow.db, in the foreground."""
    port = int(os.environ.get("MLFLOW_PORT", 5000))
    if _listens(port):
        _fail(f"http://{HOST}:{port} answers already; another port: make ui MLFLOW_PORT={port + 1}")
    own = _secrets()
    login = access.mlflow_variables(f"http://{HOST}:{port}", own)
    if prefect := _main_process("prefect"):
        login |= access.prefect_variables(prefect.environ()[ADDRESS], own)
    access.write_login(LOGIN, login)
    print(
        f"MLflow: http://{HOST}:{port}/{RUNS} (its first start takes a minute; stop: Ctrl-C)\n"
        f"user {access.USER}, password: MLFLOW_TRACKING_PASSWORD in {LOGIN.relative_to(ROOT)}",
        flush=True,
    )
    os.chdir(ROOT)
    program, *arguments = _mlflow_command(port)
    os.execve(BIN / program, [program, *arguments], _mlflow_env(own, port))


def _prefect_command(port: int) -> list[str]:
    return ["python", COMMANDS["prefect"], str(port)]


def _page_command(port: int) -> list[str]:
    return [*COMMANDS["page"].split(), "--port", str(port)]


def _mlflow_command(port: int) -> list[str]:
    """Artifacts are plain files that clients write themselves, as they do without a server.

    So runs recorded with and without the server can follow each other in one experiment.
    """
    options = {
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{ROOT / 'mlflow.db'}",
        "--default-artifact-root": (ROOT / "mlartifacts").as_uri(),
        "--allowed-hosts": f"{HOST}:{port},localhost:{port}",
        "--cors-allowed-origins": f"http://{HOST}:{port},http://localhost:{port}",
    }
    program = COMMANDS["mlflow"].split()
    return [*program, "--no-serve-artifacts", *chain.from_iterable(options.items())]


def _own_mlflow(own: access.Secrets) -> str | None:
    """The tracking server that MLFLOW_TRACKING_URI names, unless it is the one started here."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    ours = [f"http://{host}:{os.environ.get('MLFLOW_PORT', 5000)}" for host in (HOST, "localhost")]
    # From the file with the login; the port there may be another than this start's.
    sourced = os.environ.get("MLFLOW_TRACKING_PASSWORD") == own.mlflow and _here(uri)
    return uri if uri and uri not in ours and not sourced else None


def _let_viewer_in(mlflow: str, own: access.Secrets) -> None:
    """Make the viewer, and the file that whoever may look at MLflow sources."""
    try:
        access.make_viewer(mlflow, own)
    except access.AccessError as error:
        _fail(str(error))
    access.write_login(VIEWER, access.mlflow_variables(mlflow, own, access.VIEWER))


def _here(uri: str) -> bool:
    return urlsplit(uri).hostname in (HOST, "localhost")


def _secrets() -> access.Secrets:
    try:
        return access.own_secrets(LOGS)
    except access.AccessError as error:
        _fail(str(error))


def _prefect_env(own: access.Secrets, port: int) -> dict[str, str]:
    return (
        _environment()
        | access.server_settings(os.environ)
        | {
            "PREFECT_API_URL": f"http://{HOST}:{port}/api",  # its page asks there
            "PREFECT_SERVER_API_AUTH_STRING": own.prefect_login,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
    )


def _mlflow_env(own: access.Secrets, port: int) -> dict[str, str]:
    _make_database()
    return _environment() | {
        "MLFLOW_AUTH_CONFIG_PATH": str(access.write_mlflow_users(LOGS, own)),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": own.session,
    }


def _make_database() -> None:
    """As a first run makes it: a server stopped at its first start would leave half of it."""
    code = (
        "from pathlib import Path; from tasks.support.mlflow.database import make_database; "
        "make_database(Path('mlflow.db').absolute())"
    )
    line = [sys.executable, "-c", code]
    if subprocess.run(line, cwd=ROOT, env=_environment()).returncode:
        _fail(f"cannot make {ROOT / 'mlflow.db'}")


def _environment() -> dict[str, str]:
    """What every process gets of the user's environment, and no telemetry.

    Prefect's database, settings and profiles are those in .dynammo/prefect, so that neither an
    account in ~/.prefect is used nor the history there is touched.
    """
    return access.minimal(os.environ) | {
        "PWD": str(ROOT),  # prefect.yaml names it
        "PREFECT_HOME": str(STATE / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves its job processes
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        # Else torch's threads spin while they wait, and slow each other where runs share the cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def _start_server(
    name: str,
    variable: str,
    default: int,
    command: Callable[[int], Sequence[str]],
    environment: Callable[[access.Secrets, int], dict[str, str]],
) -> str:
    """Start a server unless it is there. Returns its address."""
    if running := _main_process(name):
        address: str = running.environ()[ADDRESS]
        return address
    _stop(name)  # what a crashed one left
    port = int(os.environ.get(variable, default))
    if _listens(port):
        _fail(
            f"port {port} is taken by something else, so {name} cannot start; stop that, "
            f"or choose another port: make up {variable}={port + 1}"
        )
    address = f"http://{HOST}:{port}"
    print(f"starting {name}", flush=True)
    _start(name, command(port), environment(_secrets(), port), address)
    return address


def _start(name: str, command: Sequence[str], env: dict[str, str], address: str = "") -> None:
    """Start a process that outlives this one and its terminal."""
    with _log(name).open("wb") as log:
        started = subprocess.Popen(
            [BIN / command[0], *command[1:]],
            cwd=ROOT,
            env=env | {MARK: _mark(name), ADDRESS: address},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Linux shows a new program's environment a moment after it began: till then nothing finds it.
    while started.poll() is None and not _main_process(name):
        time.sleep(0.05)


def _deploy(env: dict[str, str]) -> None:
    """Register the flow of prefect.yaml, and the work pool if there is none."""
    print("deploying dynammo/incremental", flush=True)
    with _log("deploy").open("wb") as log:

        def prefect(*arguments: str) -> bool:
            command = [str(BIN / "prefect"), "--no-prompt", *arguments]
            done = subprocess.run(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            return done.returncode == 0

        pool = prefect("work-pool", "inspect", POOL) or prefect(
            "work-pool", "create", POOL, "--type", "process"
        )
        if not pool or not prefect("deploy", "--all"):
            _fail_with_log("deploy", "the deployment failed")


def _wait(name: str, ready: Callable[[], bool]) -> None:
    """Wait until a process is ready, or say why it is not."""
    if ready():
        return
    print(f"waiting for {name} ", end="", flush=True)
    end = time.monotonic() + START_SECONDS
    while not ready():
        if not _main_process(name):
            _fail_with_log(name, f"{name} stopped while it started")
        if time.monotonic() > end:
            _fail_with_log(name, f"{name} is not ready after {START_SECONDS} seconds")
        print(".", end="", flush=True)
        time.sleep(1)
    print(" ready")


def _stop(name: str) -> None:
    """Ask the first process to stop, then all that are left, then insist."""
    main = _main_process(name)
    _signal([main] if main else [], signal.SIGTERM, name)
    _signal(_processes(name), signal.SIGTERM, name)
    _signal(_processes(name), signal.SIGKILL, name)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals, name: str) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    end = time.monotonic() + STOP_SECONDS
    while processes and _processes(name) and time.monotonic() < end:
        time.sleep(0.2)


def _main_process(name: str) -> psutil.Process | None:
    for process in _processes(name):
        with suppress(psutil.Error):
            if COMMANDS[name] in " ".join(process.cmdline()):
                return process
    return None


def _processes(name: str) -> list[psutil.Process]:
    """The processes of a server, with all their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == _mark(name):
                found.append(process)
        except (psutil.Error, OSError):  # another user's, or gone
            continue
    return found


def _mark(name: str) -> str:
    return f"{name} in {ROOT}"


def _log(name: str) -> Path:
    return LOGS / f"{name}.log"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _get(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _lock() -> TextIO:
    """One `up` or `down` at a time."""
    LOGS.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (LOGS / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _fail("another make up or make down is at work")
    return file


def _fail_with_log(name: str, message: str) -> NoReturn:
    lines = _log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    _fail("\n".join([message + "; the end of its log:", *lines, f"(all of it: {_log(name)})"]))


def _fail(message: str) -> NoReturn:
    print(f"\nerror: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    commands = {"up": up, "down": down, "ui": ui}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        _fail(f"usage: servers.py {'|'.join(commands)}")
    commands[sys.argv[1]]()
