import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.data.formats.pictures import load_image
from dynammo.deploy.manifest import Appearance, PredictionSets, Unknown
from dynammo.deploy.predictor import Classifier, Predictor, save_model
from dynammo.errors import CheckpointError, DataError
from dynammo.evaluation.appearance import fit, measure
from dynammo.heads.linear import new_head
from dynammo.merging.average import average
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import extract_features
from dynammo.network.network import Network, build_network
from tests.models import reseal

TINY = BackboneConfig(name="test_resnet", pretrained=False)
ADAPTER = AdapterConfig(options={"alpha": 0.5})
SIZE = 64
CLASSES = ["naevus", "mélanome", "keratosis"]


def pictures(count: int, size: int = SIZE) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    tints = random.integers(0, 2, (count, 1, 1, 3)) * 150
    return list((tints + random.integers(0, 100, (count, size, size, 3))).astype(np.uint8))


def tensor(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return pretrained_weights(TINY, seed=1)


@pytest.fixture(scope="module")
def merged(weights: dict[str, Tensor]) -> Network:
    """The network with the average of three adapters."""
    network = build_network(TINY, weights, SIZE, ADAPTER)
    singles = (build_network(TINY, weights, SIZE, ADAPTER, seed) for seed in range(3))
    network.load_adapter_state(average(single.adapter_state() for single in singles))
    return network


@pytest.fixture(scope="module")
def head(merged: Network) -> dict[str, Tensor]:
    """Far from constant: centred on the features of `pictures`, with large weights."""
    features = extract_features(merged, tensor(pictures(8)))
    weight = 1000 * new_head(merged.feature_size, 3, seed=2)["weight"]
    return {"weight": weight, "bias": -weight @ features.mean(0)}


def saved(
    folder: Path,
    weights: dict[str, Tensor],
    network: Network,
    head: dict[str, Tensor],
    backbone: BackboneConfig = TINY,
    adapter: AdapterConfig = ADAPTER,
    sets: PredictionSets | None = None,
    unknown: Unknown | None = None,
) -> Path:
    save_model(
        folder,
        backbone=backbone,
        form=SIZE,
        adapter=adapter,
        backbone_weights=weights,
        adapter_weights=network.adapter_state(),
        head=head,
        classes=CLASSES,
        provenance={"data": "d" * 64},
        prediction_sets=sets,
        unknown=unknown,
    )
    return folder


@pytest.fixture(scope="module")
def save(
    weights: dict[str, Tensor], merged: Network, head: dict[str, Tensor]
) -> Callable[[Path], Path]:
    return lambda folder: saved(folder, weights, merged, head)


@pytest.fixture
def folder(save: Callable[[Path], Path], tmp_path: Path) -> Path:
    return save(tmp_path / "model")


@pytest.fixture(scope="module")
def predictor(save: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(save(tmp_path_factory.mktemp("model")))


def test_a_saved_model_is_two_files_and_a_readable_manifest(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["document_sha256"]
    weights = (folder / "model.safetensors").read_bytes()
    assert manifest == {
        "format": 2,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "backbone": {"name": "test_resnet", "positions": None, "levels": None, "pool": "mean"},
        "adapter": {"name": "conv", "options": {"alpha": 0.5}},
        "image_size": SIZE,
        "image_slices": 1,
        "image_window": None,
        "classes": CLASSES,
        "prediction_sets": None,
        "unknown": None,
        "clinical": None,
        "parents": None,
        "provenance": {"data": "d" * 64},
    }


def test_a_linear_adapter_is_folded_away(tmp_path: Path) -> None:
    config = BackboneConfig(name="mobilenetv3_small_100", pretrained=False)
    weights = pretrained_weights(config, seed=1)
    linear = AdapterConfig(name="linear")
    network = build_network(config, weights, SIZE, linear)
    for parameter in network.adapter_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    head = new_head(network.feature_size, 3, seed=2)
    predictor = Predictor(saved(tmp_path, weights, network, head, config, linear))
    assert predictor.manifest.adapter is None
    assert not predictor.model.network.adapters()
    pixels = tensor(pictures(4))
    with torch.no_grad():
        expected = (network(pixels) @ head["weight"].T + head["bias"]).double().softmax(1)
    torch.testing.assert_close(predictor.probabilities(pixels), expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_folded_stays_and_the_rest_is_folded(tmp_path: Path) -> None:
    config = BackboneConfig(name="resnet10t", pretrained=False)
    weights = pretrained_weights(config, seed=1)
    linear = AdapterConfig(name="linear", options={"bias": False})
    network = build_network(config, weights, SIZE, linear)
    for parameter in network.adapter_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    head = new_head(network.feature_size, 3, seed=2)
    predictor = Predictor(saved(tmp_path, weights, network, head, config, linear))
    assert list(network.adapters()) == ["layer1", "layer2", "layer3", "layer4"]
    assert list(predictor.model.network.adapters()) == ["layer1"]
    assert predictor.manifest.backbone.positions == ["layer1"]
    pixels = tensor(pictures(4))
    with torch.no_grad():
        expected = (network(pixels) @ head["weight"].T + head["bias"]).double().softmax(1)
    torch.testing.assert_close(predictor.probabilities(pixels), expected, atol=1e-5, rtol=1e-4)


def test_a_head_with_a_power_takes_normalised_features(
    weights: dict[str, Tensor], merged: Network, head: dict[str, Tensor], tmp_path: Path
) -> None:
    pixels = tensor(pictures(8))
    with torch.no_grad():
        roots = merged(pixels).clamp(min=0).sqrt()  # none of its features is negative
    normalised = roots / roots.norm(dim=1, keepdim=True)
    bias = -head["weight"] @ normalised.mean(0)
    power = torch.tensor(0.5, dtype=torch.float64)
    predictor = Predictor(saved(tmp_path, weights, merged, {**head, "bias": bias, "power": power}))
    expected = (normalised @ head["weight"].T + bias).double().softmax(1)
    torch.testing.assert_close(predictor.probabilities(pixels), expected, atol=1e-5, rtol=1e-4)


def test_answers_are_those_of_the_classifier(
    predictor: Predictor, merged: Network, head: dict[str, Tensor]
) -> None:
    images = pictures(8)
    pixels = tensor(images)
    with torch.no_grad():
        features = merged(pixels)
        expected = (features @ head["weight"].T + head["bias"]).double().softmax(1)
        torch.testing.assert_close(Classifier(merged, head)(pixels).double().softmax(1), expected)
    answers = predictor.predict(images)
    assert {answer.label for answer in answers} == set(CLASSES)  # no constant model
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert list(answer.probabilities) == CLASSES
        assert list(answer.probabilities.values()) == pytest.approx(row, rel=1e-3, abs=1e-6)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert answer.label == CLASSES[int(np.argmax(row))]
        assert answer.probability == answer.probabilities[answer.label]


def test_prediction_sets_are_those_of_the_thresholds(
    weights: dict[str, Tensor], merged: Network, head: dict[str, Tensor], tmp_path: Path
) -> None:
    def made(*thresholds: float | None) -> Predictor:
        sets = PredictionSets(miss=0.1, thresholds=list(thresholds))
        return Predictor(saved(tmp_path, weights, merged, head, sets=sets))

    limits = (0.3, None, 0.9)
    for answer in made(*limits).predict(pictures(8)):
        shares = zip(CLASSES, answer.probabilities.values(), limits, strict=True)
        assert answer.prediction_set == [c for c, p, t in shares if t is None or p >= 1 - t]
    with pytest.raises(CheckpointError, match="expected a threshold a class"):
        made(0.3, 0.3)


def test_answers_beyond_the_threshold_are_unknown(
    weights: dict[str, Tensor], merged: Network, head: dict[str, Tensor], tmp_path: Path
) -> None:
    images = pictures(8)
    said = Predictor(saved(tmp_path, weights, merged, head)).predict(images)
    assert [answer.unknown for answer in said] == [None] * 8
    strange = [np.log(list(answer.probabilities.values())).mean() for answer in said]
    limit = float(np.median(strange))
    unknown = Unknown(alarm=0.5, threshold=limit)
    found = Predictor(saved(tmp_path, weights, merged, head, unknown=unknown)).predict(images)
    assert [answer.unknown for answer in found] == [bool(own > limit) for own in strange]
    assert {answer.unknown for answer in found} == {True, False}

    # A picture that looks like none of these is unknown, too, however sure its answer is.
    kind = fit(measure(np.stack(images)), np.arange(8) % 3)
    appearance = Appearance(
        means=kind.means.tolist(), precision=kind.precision.tolist(), threshold=1000.0
    )
    unknown = Unknown(alarm=0.5, threshold=0.0, appearance=appearance)
    model = Predictor(saved(tmp_path, weights, merged, head, unknown=unknown))
    dark = np.zeros_like(images[0])
    assert [answer.unknown for answer in model.predict([*images, dark])] == [False] * 8 + [True]


def test_paths_bytes_and_arrays_give_the_same_answer(predictor: Predictor, tmp_path: Path) -> None:
    (array,) = pictures(1, size=80)  # not the model's size: it is resized
    path, encoded = tmp_path / "image.png", io.BytesIO()
    Image.fromarray(array).save(path)
    Image.fromarray(array).save(encoded, "png")
    first, *others = predictor.predict([array, path, str(path), encoded.getvalue()], batch_size=1)
    assert others == [first] * 3
    resized = predictor.probabilities(tensor([load_image(path, SIZE)]))
    assert list(first.probabilities.values()) == resized[0].tolist()


def test_the_batch_size_does_not_matter(predictor: Predictor) -> None:
    images, seen = pictures(5), []
    together = predictor.predict(images)
    apart = predictor.predict(images, 2, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    for one, other in zip(together, apart, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-3, abs=1e-6)
    assert predictor.predict([]) == []


def test_pixels_are_normalised_inside(merged: Network, head: dict[str, Tensor]) -> None:
    """uint8 and floats in 0..255 are the same; the backbone sees (v / 255 - mean) / std."""
    model = Classifier(merged, head)
    pixels = tensor(pictures(2))
    with torch.no_grad():
        logits = model(pixels)
        assert torch.equal(model(pixels.float()), logits)
        # Mean and standard deviation of this backbone are 0.5.
        by_hand = model.head(merged.backbone((pixels / 255 - 0.5) / 0.5))
    torch.testing.assert_close(logits, by_hand, rtol=1e-3, atol=1e-4)


def test_a_classifier_is_frozen_and_in_eval_mode(merged: Network, head: dict[str, Tensor]) -> None:
    model = Classifier(merged, head)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_the_classifier_can_be_exported(predictor: Predictor) -> None:
    pixels = tensor(pictures(3)).contiguous()
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(predictor.model, (pixels,), dynamic_shapes=dynamic)
    for batch in (pixels, pixels[:2]):
        torch.testing.assert_close(program.module()(batch), predictor.model(batch))


def test_saving_again_replaces_the_model(folder: Path, save: Callable[[Path], Path]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.safetensors").write_bytes(b"old")
    save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_that_are_no_numbers_are_not_saved(
    weights: dict[str, Tensor], merged: Network, head: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = {**head, "bias": head["bias"] / 0}
    with pytest.raises(CheckpointError, match="head/bias: values that are not finite numbers"):
        saved(tmp_path / "model", weights, merged, broken)
    assert not (tmp_path / "model").exists()


def test_positions_are_kept(
    weights: dict[str, Tensor], head: dict[str, Tensor], tmp_path: Path
) -> None:
    backbone = TINY.model_copy(update={"positions": ["layer3", "layer2"]})
    network = build_network(backbone, weights, SIZE, ADAPTER)
    loaded = Predictor(saved(tmp_path, weights, network, head, backbone)).model
    assert list(loaded.network.adapters()) == ["layer2", "layer3"]
    pixels = tensor(pictures(2))
    torch.testing.assert_close(loaded(pixels), Classifier(network, head)(pixels))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_file_is_refused(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError, match=rf"{folder} holds no usable model"):
        Predictor(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere holds no usable model"):
        Predictor(tmp_path / "nowhere")


def backbone(name: str, *positions: str) -> dict[str, object]:
    return {"name": name, "positions": list(positions) or None, "levels": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, r"model\.json: format 2 expected"),
        ({"classes": ["a", "b"]}, r"head/weight is .*\(3, \d+\), expected .*\(2, \d+\)"),
        ({"classes": None}, "classes: Field required"),
        ({"classes": ["a", "b", 3]}, r"classes\.2: Input should be a valid string"),
        ({"classes": ["a", "b", "a"]}, "'a' and 'a' cannot be told apart"),
        ({"classes": []}, "classes: List should have at least 1 item"),
        (
            {"backbone": {"name": "test_resnet", "positions": None, "levels": 2}},
            r"head/weight is .*\(3, 96\), expected .*\(3, 288\)",
        ),
        ({"backbone": None}, "backbone: Field required"),
        ({"backbone": backbone("test_vit")}, "weights do not fit"),
        ({"backbone": backbone("resnet17b")}, "no model 'resnet17b'"),
        ({"backbone": backbone("test_resnet", "layer1")}, "adapter does not fit"),
        ({"adapter": {"name": "linear", "options": {}}}, "adapter does not fit"),
        ({"adapter": {"name": "gone", "options": {}}}, "unknown adapter 'gone'"),
        ({"image_size": "64"}, "image_size: Input should be a valid integer"),
        ({"image_size": 100_000}, "image_size: Input should be less than or equal to 1024"),
        (
            {"classifier": "mine"},
            "classifier: Extra inputs are not permitted; DynaMMo .* a later one may",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    reseal(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Predictor(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", '"model"'])
def test_a_manifest_of_another_kind_is_refused(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.json: a \w+ where a document was expected"):
        Predictor(folder)


def test_an_unreadable_image_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read .*x\.png"):
        predictor.predict([*pictures(1), tmp_path / "x.png"])
