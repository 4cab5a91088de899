"""The command line: what users type, and what they are told when it is wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from dynammo.data import DATA_SOURCES
from dynammo.data.checks import RESERVED
from dynammo.data.sources.about import written_sources
from dynammo.deploy.graph import load_predictor
from dynammo.deploy.predictor import Predictor
from dynammo.errors import ConfigError
from dynammo.merging import MERGE_RULES
from flows.cli import app
from flows.cli.answers import Format, answers_to
from tests.flows.project import Project
from tests.models import BY_COLOUR, graph_folder, reseal_graph

ROOT = Path(__file__).parents[2]

COMMANDS = [
    *("learn", "history", "forget", "merge", "rollback", "promote", "held", "purge"),
    *(
        "plan",
        "report",
        "card",
        "sign",
        "verify-log",
        "delta",
        "apply-delta",
        "monitor",
        "federate",
    ),
    "run",
    "config",
    "datasets",
    "predict",
    "serve",
    "app",
    "explain",
    "evaluate",
    "compare",
    "benchmark",
    "export",
    "export-model",
    "doctor",
]


def dynammo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def output(*arguments: str | Path) -> str:
    result = dynammo(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error(*arguments: str | Path) -> str:
    """What an expected error says: exit status 1, nothing on standard output, no traceback."""
    result = dynammo(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ").rstrip("\n")


def picture(file: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no params.yaml, no data and no results."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(["b.png", "a.JPG", "inside/c.png"]):
        picture(folder / name, number)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_command_explains_itself() -> None:
    listed = output("--help")
    for command in COMMANDS:
        assert command in listed
        assert f"dynammo {command} [OPTIONS]" in output(command, "--help")
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == {
        *COMMANDS
    }


@pytest.mark.parametrize("command", ["run", "config"])
def test_all_errors_of_a_configuration_come_at_once(command: str) -> None:
    Path("params.yaml").write_text("train: {epocs: 3}\nmemory: {size: 0}\nmerge: {rule: '[max]'}\n")
    lines = error(command, "--set", "data.nme=x", "--set", "seed=-1").splitlines()
    assert lines[0] == "5 configuration errors:"
    assert sorted(line.split(": ")[0].strip("- ") for line in lines[1:]) == [
        *("data.nme", "memory.size", "merge.rule", "seed", "train.epocs")
    ]
    known = ", ".join(sorted(MERGE_RULES))
    assert f"  - merge.rule: unknown merge rule '[max]'; known: {known}" in lines


def test_settings_that_are_no_settings() -> None:
    assert error("config", "-s", "train.epochs", "-s", "seed=[1").splitlines() == [
        "2 configuration errors:",
        "  - override 'train.epochs' is not key=value",
        "  - override 'seed=[1': '[1' is not a YAML value",
    ]
    assert "cannot read [red]nowhere.yaml" in error("config", "-p", "[red]nowhere.yaml")


def test_the_configuration_of_the_folder_is_found() -> None:
    Path("params.yaml").write_text("seed: 5\n")
    Path("other.yaml").write_text("seed: 6\n")
    for arguments, seed in ([], 5), (["-p", "other.yaml"], 6), (["-s", "seed=7"], 7):
        assert yaml.safe_load(output("config", *arguments))["seed"] == seed


def test_run_refuses_a_folder_that_is_not_its_own_at_once() -> None:
    Path("[my] thesis").mkdir()
    Path("[my] thesis", "chapter.tex").touch()
    text = error("run", "--set", "output='[my] thesis'")
    assert "output: [my] thesis would be replaced, but holds chapter.tex" in text
    assert [path.name for path in Path().rglob("*")] == ["[my] thesis", "chapter.tex"]


def test_predictions_as_csv(model_folder: Path, images: Path) -> None:
    alone = picture(images.parent / "alone.png", 9)
    rows = list(csv.DictReader(StringIO(output("predict", "-m", model_folder, alone, images))))
    files = [alone, images / "a.JPG", images / "b.png", images / "inside" / "c.png"]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    predictor = Predictor(model_folder)
    for row, answer in zip(rows, predictor.predict(files), strict=True):
        assert row["label"] == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-6)
        shares = [float(row[name]) for name in predictor.classes]
        assert shares == pytest.approx(list(answer.probabilities.values()), abs=1e-6)


def test_columns_beside_the_classes_are_those_reserved(tmp_path: Path) -> None:
    with answers_to(file := tmp_path / "a.csv", Format.csv, ["a"], ["prediction_set", "unknown"]):
        pass
    assert {*file.read_text().strip().split(",")} == {*RESERVED, "a"}
    # A model of before that has such a class is answered where nothing is lost.
    with (
        pytest.raises(ConfigError, match=r"'unknown' is that of a column .* --format json"),
        answers_to(tmp_path / "b.csv", Format.csv, ["unknown"], ["unknown"]),
    ):
        pass
    assert not (tmp_path / "b.csv").exists()


def test_fast_jpeg(model_folder: Path, tmp_path: Path) -> None:
    size = Predictor(model_folder).form.size
    noise = np.random.default_rng(0).integers(0, 256, (8 * size, 8 * size, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.jpg")
    shares = [
        next(csv.DictReader(StringIO(output("predict", "-m", model_folder, *more, tmp_path))))
        for more in ((), ("--fast-jpeg",))
    ]
    assert shares[0]["file"] == shares[1]["file"]
    assert shares[0]["probability"] != shares[1]["probability"]


def test_prediction_sets_are_a_column(tmp_path: Path, images: Path) -> None:
    folder = graph_folder(tmp_path / "graph")
    reseal_graph(folder, prediction_sets={"miss": 0.1, "thresholds": [None, None, 0.0]})
    (row, *_) = csv.DictReader(StringIO(output("predict", "-m", folder, images)))
    assert list(row) == ["file", "label", "probability", "prediction_set", *BY_COLOUR, "error"]
    assert row["prediction_set"] == "red; green"


def test_images_of_no_known_class_are_said_to_be_so(tmp_path: Path) -> None:
    """A white picture speaks for all colours alike, a red one for red."""
    folder = graph_folder(tmp_path / "graph")
    reseal_graph(folder, unknown={"alarm": 0.05, "threshold": -1.2})
    for name, colour in (("red", (90, 0, 0)), ("white", (90, 90, 90))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "0.png")
    red, white = csv.DictReader(
        StringIO(output("predict", "-m", folder, tmp_path / "red", tmp_path / "white"))
    )
    assert list(red) == ["file", "label", "probability", "unknown", *BY_COLOUR, "error"]
    assert (red["unknown"], white["unknown"]) == ("false", "true")
    rows = json.loads(output("predict", "-m", folder, tmp_path / "white", "--format", "json"))
    assert rows[0]["unknown"] is True
    data = tmp_path / "data" / "red"
    (tmp_path / "red").rename(data.parent.mkdir() or data)
    (tmp_path / "white" / "0.png").rename(data / "1.png")
    text = output("evaluate", data.parent, "-m", folder)
    assert "50.0% of the images are called unknown, wrongly" in text


def test_predictions_as_json_into_a_file(model_folder: Path, images: Path) -> None:
    result = dynammo("predict", "-m", model_folder, images, "-f", "json", "-o", "[all].json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "3 predictions written to [all].json" in result.stderr
    rows = json.loads(Path("[all].json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["a.JPG", "b.png", "c.png"]
    for row in rows:
        assert row["probability"] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probabilities"][row["label"]] == row["probability"]


def test_what_cannot_be_classified_is_named(model_folder: Path, images: Path) -> None:
    predict = ("predict", "-m", model_folder)
    assert error(*predict, images, "[red]no.png") == "[red]no.png: no such file or folder"
    Path("empty").mkdir()
    assert error(*predict, "empty").startswith("empty: no image files (.bmp, .dcm")
    assert error("predict", "-m", "[no]model", images).startswith("[no]model holds no usable model")
    told = error(*predict, images, "--engine", "onnx")
    assert "no model.onnx in it; use the engine torch" in told
    told = error(*predict, images, "-f", "parquet")
    assert told.endswith("parquet is no text: give it a file with --output")


@pytest.fixture
def mixed(images: Path) -> list[Path]:
    """Good images, and between them one that is none, one cut off, and one too large."""
    (images / "[bold]bad.png").write_bytes(b"no picture")
    good = (images / "a.JPG").read_bytes()
    (images / "aa.jpg").write_bytes(good[: len(good) // 2])
    Image.new("1", (8, 8)).save(images / "huge.png")
    content = (images / "huge.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]  # it says so, at least
    header += struct.pack(">I", zlib.crc32(header))
    (images / "huge.png").write_bytes(content[:12] + header + content[33:])
    return sorted(path for path in images.rglob("*.*") if path.suffix != ".txt")


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_a_bad_file_has_its_error_in_its_row(form: str, tmp_path: Path, mixed: list[Path]) -> None:
    output, model = tmp_path / f"answers.{form}", graph_folder(tmp_path / "model")
    result = dynammo("predict", "-m", model, mixed[0].parent, "-o", output)
    assert result.exit_code == 1
    assert f"3 predictions written to {output}" in result.stderr
    told = f"error: 3 of 6 images have no answer; first: cannot read {mixed[0]}: not a readable PNG"
    assert told in result.stderr
    rows = rows_of(output)
    assert [row["file"] for row in rows] == [str(file) for file in mixed]
    problems = {Path(row["file"]).name: row["error"] for row in rows if row.get("error")}
    assert problems.keys() == {"[bold]bad.png", "aa.jpg", "huge.png"}
    assert "truncated" in problems["aa.jpg"] and "limit" in problems["huge.png"]
    predictor = load_predictor(model)
    for row in rows:
        if row.get("error"):
            assert not row.get("label") and not row.get("probability")
            continue
        (answer,) = predictor.predict([row["file"]])
        assert row["label"] == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-6)
        shares = dict(row.get("probabilities") or {name: row[name] for name in predictor.classes})
        assert {k: float(v) for k, v in shares.items()} == pytest.approx(
            answer.probabilities, abs=1e-6
        )


def test_answers_are_logged_and_the_log_is_checked(
    tmp_path: Path, mixed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, model = tmp_path / "log.jsonl", graph_folder(tmp_path / "model")
    answers = tmp_path / "answers.jsonl"
    result = dynammo("predict", "-m", model, mixed[0].parent, "-o", answers, "--log", log)
    assert result.exit_code == 1  # three of the files are no pictures, and have no line
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    given = [row for row in rows_of(answers) if "label" in row]
    assert len(lines) == len(given) == 3
    for line, row in zip(lines, given, strict=True):
        assert line["input"] == hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest()
        assert line["probabilities"] == row["probabilities"]
    assert "images" not in log.read_text()  # no name
    told = output("verify-log", log)
    assert told == f"3 predictions, chain whole\nhead {lines[-1]['hash']}\n"
    monkeypatch.setenv("DYNAMMO_PREDICTION_LOG", str(log))
    output("predict", "-m", model, mixed[1])
    assert "1 of them since the head given" in output("verify-log", log, "--head", told.split()[-1])
    # The last line is changed: nothing is answered by this log, and nothing added.
    log.write_text(log.read_text().replace('"probability": ', '"probability":  '))
    assert "its last line has been changed" in error("predict", "-m", model, mixed[1])
    assert "log.jsonl, line 1: it is not as it was written; 0 before it" in error("verify-log", log)
    assert error("verify-log", "none.jsonl") == "none.jsonl: No such file or directory"


def test_parquet_without_pyarrow(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    model, output = graph_folder(tmp_path / "model"), tmp_path / "answers.parquet"
    told = error("predict", "-m", model, images, "-o", output)
    assert told == 'pyarrow is not installed; it comes with: pip install "dynammo[pipeline]"'
    assert not output.exists()


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a table of answers, as its format's readers give them."""
    if file.suffix == ".csv":
        return list(csv.DictReader(file.open()))
    if file.suffix == ".json":
        return json.loads(file.read_text())
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return parquet.read_table(file).to_pylist()


def test_the_engine_is_chosen_and_told_of(model_folder: Path, images: Path, tmp_path: Path) -> None:
    quiet = dynammo("predict", "-m", graph_folder(tmp_path / "model"), images)
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    told = dynammo("predict", "-m", model_folder, images)
    assert told.stderr == f"{model_folder} has no ONNX graph: torch answers\n"
    assert dynammo("predict", "-m", model_folder, images, "--engine", "torch").stderr == ""


def test_predict_loads_nothing_that_it_does_not_need(tmp_path: Path, images: Path) -> None:
    """In a process of its own, from the command's entry point to the last answer."""
    model, output = graph_folder(tmp_path / "model"), tmp_path / "answers.csv"
    code = f"""
import sys
sys.argv = ["dynammo", "predict", "-m", {str(model)!r}, {str(images)!r}, "-o", {str(output)!r}]
from flows.command import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert len(rows_of(output)) == 3 and "onnxruntime" in loaded
    slow = {"torch", "torchvision", "timm", "prefect", "mlflow", "dvc", "pandas", "scipy"}
    assert not loaded & {*slow, "sklearn", "matplotlib", "onnx", "pydicom"}


def test_a_model_is_measured_on_labelled_images(model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = ["keratosis", "keratosis", "naevus"]
    files = [picture(data / "test" / name / f"{n}.png", n) for n, name in enumerate(names)]
    picture(data / "train" / "naevus" / "9.png", 9)  # not looked at
    answers = [answer.label for answer in Predictor(model_folder).predict(files)]
    right = sum(answer == name for answer, name in zip(answers, names, strict=True))
    text = output("evaluate", data, "--model", model_folder)
    assert f"accuracy {100 * right / 3:.1f}%" in text
    rows = {line.split()[1]: line.split()[3] for line in text.splitlines() if line[:1] == "│"}
    assert rows == {"melanoma": "0", "naevus": "1", "keratosis": "2"}
    assert "hierarchical" not in text
    # Without `test`, the class folders themselves.
    assert f"accuracy {100 * right / 3:.1f}%" in output(
        "evaluate", data / "test", "--model", model_folder
    )


def test_heat_maps_are_pictures(model_folder: Path, images: Path) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    result = dynammo("explain", images, "-m", model_folder, "-o", "maps", "--label", "naevus")
    assert result.exit_code == 1
    assert "3 heat maps written to maps" in result.stderr
    assert "1 of 4 images have none; first: " in result.stderr
    maps = sorted(Path("maps").iterdir())
    assert [file.name for file in maps] == [f"{name}-heat-map.png" for name in "abc"]
    assert Image.open(maps[0]).width > Image.open(maps[0]).height
    assert "no class 'wart'" in error(
        "explain", images, "-m", model_folder, "-o", "m", "--label", "wart"
    )
    picture(images / "inside" / "a.png", 1)
    assert "would share" in error("explain", images, "-m", model_folder, "-o", "m")
    assert not Path("m").exists()


def test_groups_of_classes_are_measured_where_the_model_knows_them(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path / "model")
    reseal_graph(folder, parents={"red": "warm", "green": "cold", "blue": "cold"})
    predictor = load_predictor(folder)
    files = [picture(tmp_path / "data" / "green" / f"{n}.png", n) for n in range(4)]
    said = [answer.label for answer in predictor.predict(files)]
    cold = sum(label in ("green", "blue") for label in said)
    cost = (said.count("blue") / 2 + said.count("red")) / 4
    text = output("evaluate", tmp_path / "data", "-m", folder)
    assert f"hierarchical cost {cost:.3f} (0: right; 1: no group" in " ".join(text.split())
    rows = [line.split("│") for line in text.splitlines() if "cold (green, blue)" in line]
    assert [cell.strip() for cell in rows[0][2:4]] == ["4", f"{25 * cold:.1f}%"]


def test_prediction_sets_are_measured(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path / "model")
    reseal_graph(folder, prediction_sets={"miss": 0.1, "thresholds": [0.0, None, 0.999]})
    for name in ("red", "green"):
        picture(tmp_path / "data" / name / "0.png", 0)
    text = output("evaluate", tmp_path / "data", "-m", folder)
    # Whatever it looks like, a picture is not red and may be green or blue.
    assert "prediction sets hold the class of 50.0% of the images, with 2.0 classes" in text


def test_classes_that_the_model_does_not_know_are_named(model_folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "data" / "[red]wart" / "0.png", 0)
    text = error("evaluate", tmp_path / "data", "-m", model_folder)
    assert "the model has not learnt ['[red]wart']; it knows ['melanoma', 'naevus'" in text
    Path("empty").mkdir()
    assert error("evaluate", "empty", "-m", model_folder).startswith("empty: no class folders")


def test_results_are_compared(finished: Project, elsewhere: None) -> None:
    text = output("compare", finished.results, finished.results)
    assert text.count("shapes best seed 3") == 2
    for name, summary in finished.read("metrics.json").items():
        lines = [line.split() for line in text.splitlines() if line.split()[:1] == [name]]
        assert len(lines) == 2
        assert lines[0][1:3] == [
            f"{100 * summary[key]:.1f}" for key in ("average_accuracy", "last_accuracy")
        ]


def test_a_folder_without_results_is_named() -> None:
    assert error("compare", "[b]x") == "[b]x holds no results (no results.json in it)"
    Path("damaged").mkdir()
    Path("damaged/results.json").write_text("{")
    assert error("compare", "damaged").startswith("damaged/results.json is damaged: ")


def test_the_embedded_images_are_written() -> None:
    for _ in range(2):
        assert "1797 images in [my] digits" in output("export", "digits", "[my] digits")
    assert len(list(Path("[my] digits").rglob("*.pgm"))) == 1797
    text = error("export", "cifar", "x")
    known = ", ".join(written_sources())
    assert f"'cifar' is no data set that can be written; known: {known}" in text
    text = error("export", "digits", "x", "--option", "side=9")
    assert "digits has no option 'side'; it takes none" in text
    assert not Path("x").exists()
    (Path("[my] digits") / "train" / "0" / "more.pgm").write_bytes(b"P5 1 1 255 0")
    assert "[my] digits" in error("export", "digits", "[my] digits")


def test_data_sets_are_listed_with_their_source_licence_and_citation() -> None:
    text = output("datasets")
    for name in DATA_SOURCES:
        assert f"\n{name}: " in f"\n{text}"
    assert text.count("    licence:") == text.count("    citation:") == len(DATA_SOURCES)
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in text
    text = output("datasets", "medmnist")
    assert "options:" in text and "size: 28 (default), 64, 128 or 224" in text
    known = ", ".join(sorted(DATA_SOURCES))
    assert f"unknown data source 'cifar'; known: {known}" in error("datasets", "cifar")


@pytest.fixture
def healthy(images: Path) -> dict[str, Any]:
    """A configuration that the doctor has nothing to say against."""
    for split in ("train", "test"):
        for name in ("amber", "birch"):
            seed = int.from_bytes(f"{split}{name}".encode(), "big")
            picture(Path("pictures", split, name, "0.png"), seed)
    Path(".dvc").mkdir()
    return {
        "data": {"name": "pictures", "source": "folder", "path": "pictures"},
        "backbone": {"name": "test_resnet", "pretrained": False},
    }


def doctor(params: dict[str, Any]) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit status; finding -> (ok or problem, detail)."""
    Path("params.yaml").write_text(yaml.safe_dump(params))
    result = dynammo("doctor")
    lines = re.findall(r"^ *(ok|problem)  ([\w ]+): (.*)$", result.stdout, re.M)
    found = {name: (mark, detail) for mark, name, detail in lines}
    return result.exit_code, found


def test_the_doctor_finds_nothing(healthy: dict[str, Any]) -> None:
    status, found = doctor(healthy)
    assert {name: mark for name, (mark, _) in found.items() if mark != "ok"} == {}
    assert status == 0
    assert re.search(r"has .*\bcpu\b.*; predict takes \w+$", found["ONNX Runtime"][1])
    assert found["data"][1] == "pictures: 4 images, 2 classes; tasks: 1"
    assert found["configuration"][1] == "params.yaml: pictures, test_resnet"
    assert list(found) == [
        *("Python", "packages", "torch", "ONNX Runtime", "configuration", "weights", "data"),
        *("DVC", "Prefect", "MLflow"),
    ]


def test_the_doctor_finds_what_is_wrong(
    healthy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("pictures/test/birch")
    shutil.rmtree(".dvc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    healthy["backbone"] = {"name": "test_resnet", "weights": "[no]weights.safetensors"}
    status, found = doctor(healthy)
    assert status == 1
    wrong = {name: detail for name, (mark, detail) in found.items() if mark == "problem"}
    assert wrong.keys() == {"weights", "data", "DVC", "MLflow"}
    assert "[no]weights.safetensors" in wrong["weights"]
    assert wrong["data"] == "class 'birch' is in train but not in test"
    assert "dvc init" in wrong["DVC"]
    assert "127.0.0.1:9/health does not answer" in wrong["MLflow"]
    assert "hunter2" not in str(found)


def test_the_doctor_finds_what_a_run_would_refuse(healthy: dict[str, Any]) -> None:
    healthy |= {"methods": ["icarl"], "memory": {"per_class": 0}}
    healthy["scenario"] = {"tasks": [["amber"], ["cedar"]]}
    status, found = doctor(healthy)
    assert status == 1
    wrong = {name: detail for name, (mark, detail) in found.items() if mark == "problem"}
    assert wrong.keys() == {"configuration", "data"}
    told = dynammo("doctor").stdout
    assert "methods that need exemplars: icarl" in told
    assert "cedar" in told


def test_the_doctor_names_what_is_wrong_with_the_configuration() -> None:
    status, found = doctor({"train": {"epocs": 3}})
    assert status == 1
    assert found["configuration"][0] == "problem"
