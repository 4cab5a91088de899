from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from starlette.testclient import TestClient

from dynammo.config import load_config
from dynammo.data.formats.pictures import Form, Pixels
from dynammo.deploy.graph import GraphPredictor
from dynammo.deploy.heat_map import explained
from dynammo.deploy.predictor import Predictor
from dynammo.errors import CheckpointError, DataError
from tasks.support.mlflow.champion import promote
from tasks.support.mlflow.pyfunc_model import ImageClassifier, read_image
from tasks.support.mlflow.runs import TrackingError, open_runs, tracking_uri
from tasks.support.mlflow.served_model import ModelInfo, log_model, plain_example, register
from tasks.support.mlflow.serving import make_app
from tests.clips import clip
from tests.models import graph_folder, random_model, reseal

NAME, DATA_HASH = "dynammo-skin8", "d" * 64
SUMMARY = {"last_mean_class_recall": 0.75, "last_accuracy": 0.8, "forgetting_accuracy": None}
START_SECONDS = 120


def picture(seed: int, height: int = 40, width: int = 50) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Pixels, kind: str = "PNG") -> str:
    content = BytesIO()
    Image.fromarray(image).save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


class Registered(NamedTuple):
    """A champion, and where it is registered."""

    uri: str
    run: str
    model: ModelInfo
    version: str


def log_and_register(run: str, folder: Path) -> tuple[ModelInfo, str]:
    model = log_model(run, folder, NAME, picture(0, 300, 200))
    classes = Predictor(folder).classes
    version = register(NAME, run, model, data_hash=DATA_HASH, classes=classes, summary=SUMMARY)
    return model, version


@pytest.fixture(scope="module")
def registered(
    migrated_database: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registered]:
    folder = tmp_path_factory.mktemp("tracking")
    shutil.copy(migrated_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        config = load_config(None, {"data.name": "skin8"})
        run = open_runs(config, "key", {"hash": DATA_HASH}, ["merged"])["children"]["merged"]
        model, version = log_and_register(run, model_folder)
        promote(NAME, version, {"passed": True, "checks": []})
        yield Registered(f"models:/{NAME}@champion", run, model, version)


@pytest.fixture(scope="module")
def loaded(registered: Registered) -> Any:
    return mlflow.pyfunc.load_model(registered.uri)


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor(model_folder)


def assert_same(answers: list[dict[str, Any]], predictor: Predictor, images: list[Any]) -> None:
    """The served model says what the model in the folder says."""
    expected = predictor.predict(images)
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected]
    for answer, right in zip(answers, expected, strict=True):
        assert set(answer) == set(right._fields)
        assert answer["prediction_set"] == right.prediction_set
        assert answer["unknown"] == right.unknown
        assert answer["probability"] == pytest.approx(right.probability, abs=1e-6)
        assert answer["probabilities"] == pytest.approx(right.probabilities, abs=1e-6)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_images_are_taken_as_users_have_them(loaded: Any, predictor: Predictor) -> None:
    colour, grey = picture(1), picture(2)[..., 0]
    jpeg, png = encode(picture(3), "JPEG"), encode(colour)
    sent = [
        (colour, colour),
        (colour.tolist(), colour),
        (colour.astype(np.int64), colour),
        (grey, grey),
        (grey.tolist(), grey),
        ((colour.astype(np.uint16) * 257).tolist(), colour),
        ((colour / 255).tolist(), colour),
        (png, colour),
        (jpeg, base64.b64decode(jpeg)),
        (base64.b64decode(png), colour),
        (f"data:image/png;base64,{png}", colour),
        ("\n".join(png[i : i + 76] for i in range(0, len(png), 76)), colour),
        (Image.fromarray(colour), colour),
    ]
    answers = loaded.predict(pd.DataFrame({"image": [image for image, _ in sent]}))
    assert_same(answers, predictor, [same for _, same in sent])


def test_batches_without_a_table(loaded: Any, predictor: Predictor) -> None:
    batch = np.stack([picture(1), picture(2)])
    assert_same(loaded.predict({"image": batch}), predictor, list(batch))
    texts = [encode(image) for image in batch]
    assert_same(loaded.predict({"image": texts}), predictor, list(batch))
    assert_same(loaded.predict([{"image": image} for image in texts]), predictor, list(batch))


def test_the_graph_answers_unless_torch_is_asked_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(folder: Path) -> type:
        model = ImageClassifier()
        model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
        return type(model.predictor)

    whole = Path(shutil.copytree(model_folder, tmp_path / "model"))
    graph = graph_folder(tmp_path / "graph")
    assert (engine(graph), engine(whole)) == (GraphPredictor, Predictor)
    for name in ("model.onnx", "graph.json"):
        shutil.copy(graph / name, whole / name)  # not its own: refused, but not by torch
    monkeypatch.setenv("DYNAMMO_ENGINE", "torch")
    assert engine(whole) is Predictor
    monkeypatch.setenv("DYNAMMO_ENGINE", "onnx")
    with pytest.raises(CheckpointError, match="exported from another"):
        engine(whole)


def test_heat_maps_are_drawn_where_they_are_asked_for(loaded: Any, predictor: Predictor) -> None:
    table = pd.DataFrame({"image": [encode(picture(1)), picture(2)]})
    answers = loaded.predict(table, params={"heat_map": True})
    drawn = [base64.b64decode(answer.pop("heat_map")) for answer in answers]
    assert_same(answers, predictor, [picture(1), picture(2)])
    assert drawn[0] == explained(predictor, picture(1), answers[0]["label"])
    assert Image.open(BytesIO(drawn[1])).size == (predictor.form.size, predictor.form.size)


def test_every_bad_image_is_named(loaded: Any) -> None:
    truncated = encode(picture(1))[:400]
    images = [picture(1), truncated, encode(picture(2)), None]
    with pytest.raises(MlflowException) as caught:
        loaded.predict(pd.DataFrame({"image": images}))
    message = str(caught.value)
    assert "cannot read image 2 of 4: " in message
    assert "cannot read image 4 of 4: expected an array or base64 text, got nothing" in message
    assert "image 1" not in message
    assert "image 3" not in message
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("no base64!", "the text is not base64 of an image file"),
        ("aGVsbG8=", "PNG, JPEG"),
        ("", "PNG, JPEG"),
        ([], "array of shape"),
        ([[1, 2, 3, 5, 6], [1, 2]], "rows of different lengths"),
        ([[0, 70000, 0, 0, 0]], "values 0 to 70000"),
        ([[0, -1, 0, 0, 0]], "values -1 to 0"),
        ([[0.5, 7.0, 0, 0, 0]], "expected 0 to 1"),
        ([[["a"]]], "array of"),
        ([[1, 2, 3], [4, 5, 6]], "a row of pixels, no image"),
        (3.5, "expected an array or base64 text, got float"),
        ({"a": 1}, "expected an array or base64 text, got dict"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, reason: str) -> None:
    with pytest.raises(DataError, match="cannot read image 1") as caught:
        read_image(image, "image 1")
    assert reason in str(caught.value)


def test_text_is_never_a_path(tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "secret.png")
    with pytest.raises(DataError, match="not base64"):
        read_image(str(tmp_path / "secret.png"), "image 1")


def test_a_lone_image_is_not_taken_for_a_batch_of_its_rows(loaded: Any) -> None:
    with pytest.raises(MlflowException, match="a row of pixels, no image"):
        loaded.predict({"image": picture(1)})


def test_columns_beside_the_image_may_be_sent_or_left_out(
    registered: Registered, model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    clinical = {
        "weight": 1.0,
        "categories": {"ward": {"3": [0.0, 3.0, 0.0]}},
        "numbers": {"age": [[40.0, 60.0, 40.0], [100.0, 100.0, 100.0]]},
    }
    reseal(folder, {"clinical": clinical})
    model = log_model(registered.run, folder, NAME, picture(0))
    names = mlflow.models.get_model_info(model["uri"]).signature.inputs.input_names()
    assert names == ["image", "ward", "age"]
    served, image = mlflow.pyfunc.load_model(model["uri"]), picture(1)
    known = pd.DataFrame({"image": [image, image], "ward": [3, None], "age": [60, None]})
    both, alone = served.predict(known)
    (without,) = served.predict(pd.DataFrame({"image": [image]}))
    assert alone["probabilities"] == pytest.approx(without["probabilities"], abs=1e-6)
    found, before = ([*own["probabilities"].values()] for own in (both, alone))
    gain = np.log(found) - np.log(before)
    assert gain[1] - gain[0] == pytest.approx(3 + 400 / 200)
    with pytest.raises(MlflowException, match="age: 'old' is no number"):
        served.predict(pd.DataFrame({"image": [image], "age": ["old"]}))
    packed = pd.DataFrame({"image": [[encode(image), encode(image)]], "age": [60]})
    with pytest.raises(MlflowException, match="age: expected one image a row"):
        served.predict(packed)


def test_a_model_of_volumes_answers_clips_and_says_what_reads_them(
    registered: Registered, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    form = Form(64, slices=4)
    folder = random_model(tmp_path / "model", ["rises", "falls"], form=form)
    model = log_model(registered.run, folder, NAME, plain_example(form))
    served = mlflow.pyfunc.load_model(model["uri"])
    requirements = Path(mlflow.pyfunc.get_model_dependencies(model["uri"])).read_text()
    assert f"av=={version('av')}" in requirements.split()
    frames = [picture(number, 64, 48) for number in range(6)]
    file = clip(tmp_path / "clip.mp4", frames)
    text = base64.b64encode(file.read_bytes()).decode()
    (answer,) = served.predict(pd.DataFrame({"image": [text]}))
    assert_same([answer], Predictor(folder), [file])


def test_the_logged_model_is_whole_and_without_pickles(registered: Registered) -> None:
    model = MlflowClient(tracking_uri()).get_logged_model(registered.model["model_id"])
    folder = Path(model.artifact_location.removeprefix("file://"))
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    # Python leaves the first where another test loads the model from.
    logged = [name for name in files if not name.startswith("__pycache__/")]
    assert not [name for name in logged if name.endswith((".pkl", ".pickle", ".pt", ".pyc"))]
    assert "code/dynammo/deploy/predictor.py" in files
    assert [name for name in files if name.endswith("/model.safetensors")]
    pins = (folder / "requirements.txt").read_text().split()
    assert {pin.partition("==")[0] for pin in pins} >= {"mlflow", "torch", "timm", "pillow"}
    assert not [pin for pin in pins if "==" not in pin or "+" in pin]
    info = mlflow.models.get_model_info(registered.uri)
    assert info.signature.inputs.input_names() == ["image"]
    assert info.signature.outputs.input_names() == [
        "label",
        "probability",
        "probabilities",
        "prediction_set",
        "unknown",
        "heat_map",
    ]
    assert info.run_id == registered.run


def test_the_input_example_can_be_sent(
    registered: Registered, loaded: Any, predictor: Predictor
) -> None:
    (row,) = loaded.input_example["image"]
    image = Image.open(BytesIO(base64.b64decode(row)))
    assert max(image.size) == 128
    assert_same(loaded.predict(loaded.input_example), predictor, [np.asarray(image)])


def test_a_version_says_what_it_was_measured_on(
    registered: Registered, predictor: Predictor
) -> None:
    version = MlflowClient(tracking_uri()).get_model_version(NAME, registered.version)
    assert version.run_id == registered.run
    assert version.tags["data_hash"] == DATA_HASH
    assert json.loads(version.tags["classes"]) == predictor.classes
    assert version.tags["last_mean_class_recall"] == "0.75"
    assert "forgetting_accuracy" not in version.tags
    assert version.tags["dynammo.sha256"] == registered.model["sha256"]
    assert version.description == (
        f"3 classes; last mean class recall 75.0%, last accuracy 80.0% on data {'d' * 12}."
    )


def test_the_same_model_is_registered_once_and_another_anew(
    tracking: Path, model_folder: Path, tmp_path: Path
) -> None:
    config = load_config(None, {"data.name": "skin8"})
    run = open_runs(config, "key", {"hash": DATA_HASH}, ["merged"])["children"]["merged"]
    first = log_and_register(run, model_folder)
    assert log_and_register(run, model_folder) == first

    other = shutil.copytree(model_folder, tmp_path / "other")
    reseal(other, {"provenance": {"data": "new"}})
    second = log_and_register(run, other)
    assert second[0]["model_id"] != first[0]["model_id"]
    assert (first[1], second[1]) == ("1", "2")

    MlflowClient(tracking_uri()).delete_model_version(NAME, first[1])
    assert log_and_register(run, model_folder) == (first[0], "3")


def test_what_a_process_left_that_was_killed_while_it_logged_or_registered(
    tracking: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, {"data.name": "skin8"})
    run = open_runs(config, "key", {"hash": DATA_HASH}, ["merged"])["children"]["merged"]
    client = MlflowClient(tracking_uri())

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for call in ("log_model_artifacts", "set_logged_model_tags"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(MlflowClient, call, killed)
            log_and_register(run, model_folder)
    model, version = log_and_register(run, model_folder)
    experiment = client.get_run(run).info.experiment_id
    logged = {own.model_id: own for own in client.search_logged_models([experiment])}
    assert version == "1"
    assert sorted(own.status for own in logged.values()) == ["FAILED", "READY"]
    link = [{"name": NAME, "version": 1}]
    assert json.loads(logged[model["model_id"]].tags["mlflow.modelVersions"]) == link


@pytest.fixture(scope="module")
def address(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve`, in a folder that has nothing to do with the project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # MLflow starts a program, uvicorn, that an activated environment has on its path.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", registered.uri]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(START_SECONDS * 4):
            try:
                urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except URLError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def post(address: str, document: Any) -> tuple[int, dict[str, Any]]:
    """What `curl -H 'Content-Type: application/json' -d ...` gets."""
    headers = {"Content-Type": "application/json"}
    request = Request(address, json.dumps(document).encode(), headers)
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def test_the_champion_is_served(address: str, predictor: Predictor) -> None:
    first, second = picture(1), picture(2, height=30)
    text, lists = encode(first), second.tolist()
    for document in (
        {"dataframe_records": [{"image": text}, {"image": lists}]},
        {"dataframe_split": {"columns": ["image"], "data": [[text], [lists]]}},
        {"inputs": [{"image": text}, {"image": lists}]},
        {"inputs": {"image": [text, lists]}},
        {"inputs": [text, encode(second)]},
        {"instances": [{"image": text}, {"image": encode(second)}]},
    ):
        status, answer = post(address, document)
        assert status == 200, answer
        assert_same(answer["predictions"], predictor, [first, second])
    status, answer = post(address, {"instances": [first.tolist(), first.tolist()]})
    assert_same(answer["predictions"], predictor, [first, first])


def test_json_that_is_nested_too_deeply_is_the_clients_fault(
    registered: Registered, predictor: Predictor
) -> None:
    """`dynammo serve`; MLflow's own server answers 500."""
    client = TestClient(make_app(registered.uri))
    deep = b'{"inputs": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    refused = client.post(
        "/invocations", content=deep, headers={"Content-Type": "application/json"}
    )
    assert refused.status_code == 400
    assert "nested too deeply" in refused.json()["message"]
    answer = client.post("/invocations", json={"inputs": [encode(picture(1))]})
    assert_same(answer.json()["predictions"], predictor, [picture(1)])


def test_a_model_that_is_not_registered_cannot_be_served(registered: Registered) -> None:
    with pytest.raises(TrackingError, match="nobody"):
        make_app("models:/nobody@champion")


def test_a_client_is_told_what_is_wrong(address: str) -> None:
    good, truncated = encode(picture(1)), encode(picture(1))[:400]
    records = [{"image": good}, {"image": truncated}, {"image": "/etc/hostname"}]
    status, answer = post(address, {"dataframe_records": records})
    assert status == 400
    assert "cannot read image 2 of 3: " in answer["message"]
    assert "cannot read image 3 of 3: the text is not base64 of an image" in answer["message"]
    assert "Traceback" not in json.dumps(answer)
    status, answer = post(address, {"dataframe_records": [{"picture": good}]})
    assert status == 400
    assert "missing inputs ['image']" in answer["message"]
