import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import dynammo
from dynammo.config import AdapterConfig, BackboneConfig, load_config
from dynammo.data.formats.pictures import Form, load_image
from dynammo.deploy import export
from dynammo.deploy.export import add_graph, export_model, sample_pixels
from dynammo.deploy.graph import GraphPredictor, load_predictor
from dynammo.deploy.predictor import Predictor, save_model
from dynammo.errors import CheckpointError, ConfigError, DataError, ExportError
from dynammo.heads.linear import new_head
from dynammo.heads.scaling import head_features
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network
from tests.models import reseal

SIZE = 64
CLASSES = ["naevus", "mélanome", "keratosis"]
DOCUMENT = Path(__file__).parents[3] / "docs" / "how-to" / "deploying.md"


def saved(
    folder: Path,
    name: str,
    adapter: AdapterConfig,
    *positions: str,
    centred: bool = False,
    power: float | None = None,
    levels: int | None = None,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
) -> Path:
    """A model whose numbers are anything but neutral.

    Random features hardly differ between images. Where `centred`, what they have in common is
    subtracted, so the answers differ; in deep networks this would leave little but rounding.
    """
    config = BackboneConfig(
        name=name, pretrained=False, positions=list(positions) or None, levels=levels
    )
    weights = pretrained_weights(config, seed)
    torch.manual_seed(seed)
    for key, value in weights.items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    network = build_network(config, weights, SIZE, adapter)
    for module in network.adapters().values():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)
    pixels = torch.from_numpy(sample_pixels(SIZE, 8)).permute(0, 3, 1, 2)
    normalised = {} if power is None else {"power": torch.tensor(power, dtype=torch.float64)}
    with torch.no_grad():
        features = head_features(network(pixels), normalised)
    weight = new_head(network.feature_size, len(classes), seed=2)["weight"]
    weight = 20 * weight / (features @ weight.T).abs().max()
    bias = -weight @ features.mean(0)
    head = {"weight": weight, "bias": bias if centred else torch.zeros(len(classes)), **normalised}
    save_model(
        folder,
        backbone=config,
        form=SIZE,
        adapter=adapter,
        backbone_weights=weights,
        adapter_weights=network.adapter_state(),
        head=head,
        classes=classes,
        provenance={"data": "d" * 64},
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = AdapterConfig(options={"alpha": 0.5})
    folder = tmp_path_factory.mktemp("results") / "model"
    return saved(folder, "test_resnet", adapter, centred=True, power=0.5)


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder, and what `export_model` said of it. From the results folder."""
    folder = tmp_path_factory.mktemp("exports") / "v1"
    return folder, export_model(model.parent, folder)


@pytest.fixture
def tiny(model: Path, tmp_path: Path) -> Path:
    """An export of the quickest kind, to be overwritten."""
    export_model(model, tmp_path / "out", ["safetensors"])
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_form_is_there_and_described(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, report = exported
    names = ["export.json", "graph.json", "model.json", "model.onnx", "model.pt2"]
    assert sorted(contents(folder)) == [*names, "model.safetensors"]
    assert json.loads((folder / "export.json").read_text()) == report
    assert report["checked_on"]["images"] == 16
    assert report["tolerance"] == {"logits": 1e-4, "probability": 1e-3}
    assert report["opset"] == 18
    assert report["batch_norms_left"] == 0
    for file in report["files"].values():
        assert file["bytes"] == (folder / file["name"]).stat().st_size
        assert 0 <= file["logit_difference"] <= 1e-4


def test_the_answers_are_the_models(model: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    """On pictures upside down, which the command did not check, and batches of other sizes."""
    folder, _ = exported
    source = Predictor(model)
    pixels = torch.from_numpy(sample_pixels(SIZE, 7)[:, ::-1].copy()).permute(0, 3, 1, 2)
    pixels = pixels.contiguous()
    expected = source.probabilities(pixels).float()
    assert expected.std(0).max() > 0.01  # no constant model
    for name in export.FORMATS:
        run = export._loaded(name, folder)
        for part in (slice(0, 7), slice(0, 1), slice(2, 5)):
            with torch.inference_mode():
                logits, probabilities = run(pixels[part])
            torch.testing.assert_close(probabilities, expected[part], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(logits.softmax(1), probabilities, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "adapter", "positions"),
    [
        ("mobilenetv2_100", AdapterConfig(name="linear"), ()),
        ("mobilenetv3_small_100", AdapterConfig(options={"alpha": -0.5}), ("blocks.2",)),
        ("resnet18", AdapterConfig(name="linear"), ()),  # kept in the model: not foldable
        ("regnety_002", AdapterConfig(options={"alpha": 0.5}), ("s3",)),
        ("test_resnet", AdapterConfig(name="attention", options={"gate": "cbam"}), ()),
    ],
)
def test_every_family_can_be_exported(
    name: str, adapter: AdapterConfig, positions: tuple[str, ...], tmp_path: Path
) -> None:
    source = saved(tmp_path / "model", name, adapter, *positions)
    report = export_model(source, tmp_path / "out", ["onnx"])
    assert report["batch_norms_left"] == 0
    assert report["files"]["onnx"]["logit_difference"] < 1e-5
    no_batch_norms(tmp_path / "out" / "model.onnx")


def no_batch_norms(graph: Path) -> None:
    operators = {node.op_type for node in onnx.load(graph).graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators


def test_the_default_model_can_be_exported(tmp_path: Path) -> None:
    """As `preset: best` makes it: linear adapters, several levels, normalised features."""
    default = load_config()
    source = saved(
        tmp_path / "model",
        default.backbone.name,
        default.adapter,
        power=default.head.power,
        levels=default.backbone.levels,
    )
    network = Predictor(source).model.network
    assert network.signed == [True] * 3 and not network.adapters()
    report = export_model(source, tmp_path / "out")
    assert report["batch_norms_left"] == 0
    for form in ("pt2", "onnx"):
        assert report["files"][form]["logit_difference"] < 1e-4
    no_batch_norms(tmp_path / "out" / "model.onnx")


def test_names_and_preprocessing_are_inside(
    model: Path, exported: tuple[Path, dict[str, Any]]
) -> None:
    folder, _ = exported
    wanted = {
        "classes": json.dumps(CLASSES, ensure_ascii=False),
        "image_size": str(SIZE),
        "dynammo": dynammo.__version__,
        "model.json": (model / "model.json").read_text(),
    }
    proto = onnx.load(folder / "model.onnx")
    in_onnx = {entry.key: entry.value for entry in proto.metadata_props}
    in_pt2: dict[str, Any] = dict.fromkeys([*wanted, "preprocessing"], "")
    torch.export.load(folder / "model.pt2", extra_files=in_pt2)
    with safe_open(folder / "model.safetensors", "pt") as file:
        in_safetensors = json.loads(file.metadata()["dynammo"])
    for found in (in_onnx, in_pt2, in_safetensors):
        assert "BICUBIC" in found.pop("preprocessing")
        assert found == wanted
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    (images,) = proto.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *rest = images.type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert [side.dim_value for side in rest] == [3, SIZE, SIZE]
    assert [output.name for output in proto.graph.output] == ["logits", "probabilities"]


def test_files_hold_no_pickle_and_no_path(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = exported
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert parts.pop("model/data/sample_inputs/model.pt") == b""  # would be a pickle
    for kind in ("weights", "constants"):
        entries = json.loads(parts[f"model/data/{kind}/model_{kind}_config.json"])["config"]
        assert not any(entry["use_pickle"] for entry in entries.values())
    assert not any(name.endswith((".pkl", ".pt")) for name in parts)
    everything = b"".join(parts.values()) + (folder / "model.onnx").read_bytes()
    for path in (sys.prefix, str(Path(dynammo.__file__).parent), str(folder.parent)):
        assert path.encode() not in everything


def test_an_export_is_a_model_folder_again(
    model: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, report = exported
    images = list(sample_pixels(80, 3))
    assert Predictor(folder).predict(images) == Predictor(model).predict(images)
    again = export_model(folder, tmp_path / "again", ["safetensors"])
    assert again["files"]["safetensors"] == report["files"]["safetensors"]


def test_the_document_runs_without_torch(
    model: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The example of docs/how-to/deploying.md, in a process without torch and dynammo."""
    (example,) = re.findall(r"```python\n(import json.*?)```", DOCUMENT.read_text(), re.DOTALL)
    picture = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(
        picture
    )
    (tmp_path / "model.onnx").write_bytes((exported[0] / "model.onnx").read_bytes())
    blocked = ("torch", "torchvision", "timm", "dynammo", "onnx", "safetensors", "scipy")
    block = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", block + example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (answer,) = Predictor(model).predict([picture])
    label, probability = done.stdout.split()
    assert label == answer.label
    assert float(probability) == pytest.approx(answer.probability, abs=1e-5)


def test_both_engines_give_the_same_probabilities(
    model: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Of files of other sizes, decoded and resized; to 1e-5, a hundredth of what is tolerated."""
    files = [tmp_path / f"{index}.png" for index in range(7)]
    for file, side, pixels in zip(files, range(40, 110, 10), sample_pixels(120, 7), strict=True):
        Image.fromarray(pixels[: side + 7, :side]).save(file)
    graph, torch_ = load_predictor(exported[0]), load_predictor(model, "torch")
    assert isinstance(graph, GraphPredictor) and isinstance(torch_, Predictor)
    for one, other in zip(graph.predict(files), torch_.predict(files), strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, rel=0, abs=1e-5)
    probabilities = [answer.probability for answer in graph.predict(files)]
    assert max(probabilities) - min(probabilities) > 0.01  # no constant model


def test_given_images_are_what_is_compared(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file, pixels in zip(files, sample_pixels(50, 3), strict=True):
        Image.fromarray(pixels).save(file)
    report = export_model(model, tmp_path / "out", ["safetensors"], files)
    assert report["checked_on"] == {"images": 3, "what": "given images"}
    tensor, _ = export._pixels(files, SIZE)
    expected = np.stack([load_image(file, SIZE) for file in files])
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), expected)


def test_a_like_networks_graph_takes_new_weights(
    exported: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights and one class more: nothing is traced."""
    folder = saved(
        tmp_path / "model",
        "test_resnet",
        AdapterConfig(options={"alpha": 0.5}),
        centred=True,
        power=0.5,
        classes=[*CLASSES, "scar"],
        seed=9,
    )
    with monkeypatch.context() as patched:
        patched.setattr(export, "_trace", lambda *_: pytest.fail("traced"))
        add_graph(folder, exported[0])
    images = list(sample_pixels(SIZE, 3))
    for one, other in zip(
        GraphPredictor(folder).predict(images), Predictor(folder).predict(images), strict=True
    ):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    # And so on from version to version.
    again = saved(
        tmp_path / "again", "test_resnet", AdapterConfig(), centred=True, power=0.5, seed=10
    )
    monkeypatch.setattr(export, "_trace", lambda *_: pytest.fail("traced"))
    add_graph(again, folder)
    assert GraphPredictor(again).classes == CLASSES


@pytest.mark.parametrize("what", ["another network", "another alpha", "no graph", "damaged"])
def test_a_graph_that_does_not_fit_is_made_anew(
    what: str, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    name = "test_efficientnet" if what == "another network" else "test_resnet"
    # In a graph alpha is a number among its nodes.
    kind = AdapterConfig(options={"alpha": -0.3 if what == "another alpha" else 0.5})
    folder = saved(tmp_path / "model", name, kind, centred=True, power=0.5)
    earlier = Path(shutil.copytree(exported[0], tmp_path / "earlier"))
    if what == "no graph":
        (earlier / "model.onnx").unlink()
    if what == "damaged":
        (earlier / "graph.json").write_text("{}")
    with pytest.raises(ExportError):
        export_model(folder, tmp_path / "out", ["onnx"], template=earlier)
    add_graph(folder, earlier)
    image = sample_pixels(SIZE, 1)[0]
    expected = Predictor(folder).predict([image])[0].probabilities
    answer = GraphPredictor(folder).predict([image])[0].probabilities
    assert answer == pytest.approx(expected, abs=1e-5)


def test_sample_pixels_are_pictures() -> None:
    pixels = sample_pixels(32)
    assert pixels.shape == (16, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels.reshape(16, -1).std(1) > 10).all()
    assert len({picture.tobytes() for picture in pixels}) == 16


class Other(nn.Module):
    """Answers that are wrong by a factor, or no numbers."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = self.model(images)
        return logits * self.factor, probabilities


@pytest.mark.parametrize(
    ("factor", "fine"), [(1.00001, True), (1.001, False), (float("nan"), False)]
)
def test_wrong_answers_are_refused_and_nothing_changes(
    factor: float, fine: bool, model: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tiny)
    load = export._loaded
    monkeypatch.setattr(export, "_loaded", lambda *a: Other(load(*a), factor))
    if fine:
        export_model(model, tiny, ["safetensors"])
    else:
        with pytest.raises(ExportError, match="safetensors export does not predict what the model"):
            export_model(model, tiny, ["safetensors"])
        assert contents(tiny) == before
    assert [path.name for path in tiny.parent.iterdir()] == [tiny.name]


def test_a_head_of_huge_logits_is_held_against_its_own_rounding(
    model: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What all classes share leaves their probabilities as they are, but not the rounding."""
    source = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["head/weight"] += 1e4
    reseal(source, {}, tensors)
    report = export_model(source, tmp_path / "out", ["onnx"], template=exported[0])
    assert report["files"]["onnx"]["logit_difference"] < 1e-5
    assert 1e-3 < report["tolerance"]["probability"] < 0.2


def test_another_answer_is_refused_however_small_the_difference() -> None:
    """Logits of 20,000 that differ by 5e-5 of that, and by more than what decides."""
    exact = torch.tensor([[20000.5, 19999.5], [20000.0, 20000.0001]], dtype=torch.float64)
    probabilities = exact.softmax(1)
    tie = torch.tensor([[20000.5, 19999.5], [20000.0001, 20000.0]], dtype=torch.float64)
    export._differences("onnx", (exact, probabilities), (tie, probabilities), 1e-3)
    with pytest.raises(ExportError, match=r"onnx export names another .* on 1 of the images"):
        other = exact.flip(1)
        export._differences("onnx", (exact, probabilities), (other, probabilities), 1e-3)


def test_an_earlier_export_is_replaced_whole(model: Path, tiny: Path) -> None:
    (tiny / "model.onnx").write_bytes(b"of an earlier export")
    first = (tiny / "model.safetensors").read_bytes()
    export_model(model, tiny, ["safetensors"])
    assert sorted(contents(tiny)) == ["export.json", "model.json", "model.safetensors"]
    assert (tiny / "model.safetensors").read_bytes() == first
    assert [path.name for path in tiny.parent.iterdir()] == [tiny.name]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["letter.txt"], r"no earlier export \(letter\.txt in it\)"),
        (["export.json", "letter.txt"], r"no earlier export \(letter\.txt in it\)"),
        (["model.json", "model.safetensors"], r"no earlier export \(no export\.json in it\)"),
    ],
)
def test_other_folders_are_left_alone(
    files: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("mine")
    with pytest.raises(ExportError, match=message):
        export_model(model, folder, ["safetensors"])
    assert contents(folder) == dict.fromkeys(files, b"mine")


def test_a_file_in_the_way_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="is no folder"):
        export_model(model, tmp_path / "out", ["safetensors"])
    with pytest.raises(ExportError, match="cannot write"):
        export_model(model, tmp_path / "out" / "below", ["safetensors"])
    assert (tmp_path / "out").read_text() == "mine"


def test_a_failed_rename_puts_the_earlier_export_back(
    model: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(tiny), os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ExportError, match=r"cannot write .*: No space left on device"):
        export_model(model, tiny, ["safetensors"])
    assert contents(tiny) == before


def test_bad_requests_are_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "x.png").write_bytes(b"no picture")
    for source, formats, images, kind, message in [
        (model, ["onnx", "tflite"], None, ConfigError, "unknown format 'tflite'; known: safeten"),
        (model, [], None, ConfigError, "no format"),
        (tmp_path / "nowhere", ["onnx"], None, CheckpointError, "nowhere holds no usable model"),
        (model, ["onnx"], [], ExportError, "0 images to check with are too few"),
        (model, ["onnx"], [tmp_path / "x.png"] * 2, DataError, "cannot read"),
    ]:
        with pytest.raises(kind, match=message):
            export_model(source, out, formats, images)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


class Restless(nn.Module):
    """What it does depends on the numbers it is given: nothing to trace."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float() if images.sum() > 0 else -images.float()


def test_a_network_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(ExportError, match=r"torch\.export cannot trace this network"):
        export._trace(Restless(), Form(SIZE))
