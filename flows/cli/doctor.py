"""What `dynammo doctor` checks."""

from __future__ import annotations

import os
import platform
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

import httpx
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dynammo.config import load_config
from dynammo.errors import CheckpointError, DynammoError


class Finding(NamedTuple):
    """One line of the doctor's report."""

    name: str
    problem: bool
    detail: str


def checks(params: str | None) -> Iterator[Finding]:
    """Look at everything a run needs, one finding at a time.

    Args:
        params: the configuration to check; none for the defaults.
    """
    looks: list[tuple[str, Callable[[], str]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("ONNX Runtime", _onnxruntime),
        ("configuration", lambda: _configuration(params)),
        ("weights", lambda: _weights(params)),
        ("data", lambda: _data(params)),
        ("DVC", _dvc),
        ("Prefect", check_prefect),
        ("MLflow", _mlflow),
    ]
    for name, look in looks:
        try:
            yield Finding(name, False, look())
        except DynammoError as error:
            yield Finding(name, True, str(error))


class _Unwell(DynammoError):
    """A check that found something wrong."""


def _python() -> str:
    running, wanted = platform.python_version(), metadata("dynammo")["Requires-Python"]
    if running not in SpecifierSet(wanted):
        raise _Unwell(f"{running}; this project is tested with {wanted}")
    return running


def _packages() -> str:
    wrong = []
    needed = [Requirement(text) for text in requires("dynammo") or []]
    for requirement in needed:
        extras = ("", "pipeline", "export", "dicom")  # what `make setup` installs and users need
        if (marker := requirement.marker) and not any(
            marker.evaluate({"extra": extra}) for extra in extras
        ):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, needed {requirement.specifier}")
    if wrong:
        raise _Unwell(f"{'; '.join(wrong)}. Run: make setup")
    return "all that pyproject.toml needs"


def _torch() -> str:
    import torch

    import dynammo.network.backbones  # noqa: F401  (fails where torchvision does not fit torch)
    from dynammo.device import choose_device

    device = choose_device("auto")
    return f"{torch.__version__}, runs on {device}, {torch.get_num_threads()} threads"


def _onnxruntime() -> str:
    import onnx
    import onnxruntime

    from dynammo.deploy.graph import PROVIDERS, open_session, providers

    value = onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, [1, 8])
    made = onnx.helper.make_tensor_value_info("made", onnx.TensorProto.FLOAT, [1, 8])
    node = onnx.helper.make_node("Relu", ["value"], ["made"])
    graph = onnx.helper.make_graph([node], "one", [value], [made])
    opset = onnx.helper.make_opsetid("", 18)
    content = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    there = onnxruntime.get_available_providers()
    works, fails = [], []
    for name in (name for name, own in PROVIDERS.items() if own in there):
        try:
            open_session(content.SerializeToString(), provider=name)
            works.append(name)
        except CheckpointError as error:
            fails.append(f"{name} does not work ({error})")
    taken = next(name for name in providers() if name in works)
    tried = ", ".join([*works, *fails])
    return f"{onnxruntime.__version__}, has {tried}; predict takes {taken}"


def _configuration(params: str | None) -> str:
    from dynammo.checks import check_parts

    config = load_config(params)
    check_parts(config)
    return f"{params or 'defaults'}: {config.data.name}, {config.backbone.name}"


def _weights(params: str | None) -> str:
    from dynammo.network.backbones import pretrained_weights

    config = load_config(params).backbone
    return f"{config.name}: {len(pretrained_weights(config))} tensors"


def _data(params: str | None) -> str:
    from dynammo.data.checks import check_image_set
    from dynammo.data.scenario import build_scenario
    from dynammo.data.sources.about import about
    from dynammo.data.sources.loading import load_data

    config = load_config(params)
    data = config.data
    if about(data.source).written and not Path(data.path).exists():
        return f"{data.path} will be written by the first run"
    image_set = load_data(config)
    check_image_set(image_set, data.repeats)
    tasks = len(build_scenario(image_set, config.scenario, config.memory, config.seed))
    images, classes = len(image_set.samples), len(image_set.classes)
    return f"{data.path}: {images} images, {classes} classes; tasks: {tasks}"


def _dvc() -> str:
    if not Path(".dvc").is_dir():
        raise _Unwell("no .dvc folder here: run from the project's folder, or 'dvc init'")
    return "data.dvc " + ("present" if Path("data.dvc").is_file() else "is made by the first run")


def check_prefect() -> str:
    """Whether the Prefect server that is set, if any, answers and lets this user in.

    Raises:
        DynammoError: it does not.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

    from tasks.support.mlflow.runs import LOGIN_ADVICE, without_credentials

    url = PREFECT_API_URL.value()
    if not url:
        return "no server set (PREFECT_API_URL): runs start a temporary one"
    _answers(f"{url}/health", "PREFECT_API_URL", "make up")
    headers = {}
    if login := PREFECT_API_AUTH_STRING.value():
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    elif key := PREFECT_API_KEY.value():
        headers["Authorization"] = f"Bearer {key}"
    with suppress(httpx.HTTPError):  # it has answered just now; all that matters is "401"
        if httpx.get(f"{url}/hello", headers=headers, timeout=5).status_code == 401:
            raise _Unwell(
                f"Prefect at {without_credentials(url)} asks for a login: {LOGIN_ADVICE} "
                "(PREFECT_API_AUTH_STRING)"
            )
    return f"server answers at {without_credentials(url)}"


def _mlflow() -> str:
    from tasks.support.mlflow.runs import mlflow_client, tracking_uri, without_credentials

    uri = tracking_uri()
    if uri.startswith("http"):
        _answers(f"{uri}/health", "MLFLOW_TRACKING_URI", "make up")
    elif uri.startswith("sqlite") and "MLFLOW_TRACKING_URI" not in os.environ:
        return f"{uri} (see it with: make ui)"
    with mlflow_client() as client:
        client.search_experiments(max_results=1)
    where = without_credentials(uri)
    return f"server answers at {where}" if uri.startswith("http") else where


def _answers(url: str, variable: str, remedy: str) -> None:
    from tasks.support.mlflow.runs import without_credentials

    try:
        httpx.get(url, timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        problem = f"{variable} is set, but {url} does not answer ({error}): {remedy}"
        raise _Unwell(without_credentials(problem)) from None
