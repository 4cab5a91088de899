import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.errors import DynammoError
from dynammo.network.adapted import AdaptedStage
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import brightened
from dynammo.network.frozen_norms import without_frozen_norms
from dynammo.network.network import Network, build_network
from dynammo.training.frozen_prefix import run_anew, run_once, split_at_first_adapter

SIZE = 64
CLOSE = {"atol": 1e-3, "rtol": 1e-4}  # convolutions sum in another order for other batches


def images(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "name",
    [
        *("tf_efficientnet_lite0", "resnet18", "mobilenetv2_100", "mobilenetv3_small_100"),
        *("efficientnet_b0", "regnety_002", "convnext_atto"),
    ],
)
def test_the_two_parts_make_the_whole(name: str) -> None:
    config = BackboneConfig(name=name, pretrained=False)
    network = build_network(
        config, pretrained_weights(config, 0), SIZE, AdapterConfig(name="linear"), seed=1
    )
    prefix, suffix = split_at_first_adapter(network)
    assert not isinstance(prefix, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(suffix(prefix(images())), network(images()), **CLOSE)
    assert not any(isinstance(module, AdaptedStage) for module in prefix.modules())


def test_the_suffix_shares_its_modules_with_the_network(network: Network) -> None:
    _, suffix = split_at_first_adapter(network)
    shared = {id(parameter) for parameter in suffix.parameters()}
    assert {id(parameter) for parameter in network.adapter_parameters()} <= shared


@pytest.mark.parametrize("make", [split_at_first_adapter, without_frozen_norms])
def test_networks_go_when_nothing_needs_them_any_more(
    network: Network, make: Callable[[Network], object]
) -> None:
    """Without waiting for Python to look for cycles: a task's networks are many MB."""
    gc.disable()
    try:
        trainable = copy.deepcopy(network)
        made = make(trainable)
        parts = [trainable, *([made] if isinstance(made, nn.Module) else made)]
        modules = [weakref.ref(module) for part in parts for module in part.modules()]
        del trainable, made, parts
        assert not [module() for module in modules if module() is not None]
    finally:
        gc.enable()


class Around(nn.Module):
    """The picture itself goes round the stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = (x + self.stage(self.stem(x))).mean((2, 3))
        return output


class Branching(Around):
    """A forward pass that depends on values cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        output: Tensor = self.stage(x if x.sum() > 0 else -x).mean((2, 3))
        return output


class Measuring(Around):
    """Asks for a number that a stand-in for a tensor does not have."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.stage(self.stem(x)).mean((2, 3)) * (len(x) > 0)
        return output


@pytest.mark.parametrize("backbone", [Around(), Branching(), Measuring()])
def test_what_cannot_be_cut_stays_whole(backbone: nn.Module) -> None:
    network = Network(
        backbone,
        [0, 0, 0],
        [1, 1, 1],
        lambda _channels, _index, stage: AdaptedStage(nn.Identity(), stage),
        ["stage"],
        SIZE,
    )
    prefix, suffix = split_at_first_adapter(network)
    with torch.no_grad():
        assert torch.equal(suffix(prefix(images())), network(images()))
    assert suffix is network


@pytest.mark.parametrize("memory", [0, 2**30])
def test_every_view_is_run_once(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    class Counting(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x.float())

    prefix = Counting(3, 7, 3)
    views = [images(), images().flip(-1)]
    kept = run_once(prefix, views, memory, batch_size=2)
    assert sum(seen) == 10
    assert kept.shape == (2, 5, 7, SIZE - 2, SIZE - 2)
    with torch.no_grad():
        for view, inputs in enumerate(views):
            torch.testing.assert_close(kept[view], prefix(inputs), **CLOSE)
    assert not any(tmp_path.iterdir())  # the file has no name any more


def test_brightness_is_another_each_time() -> None:
    views = [images(), images().flip(-1)]
    generator = torch.Generator().manual_seed(0)
    outputs = run_anew(nn.Identity(), views, 0.2, generator)
    view, batch = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 4])
    chosen = torch.stack([views[0][4], views[1][0], views[1][4]])
    first, second = outputs(view, batch), outputs(view, batch)
    expected = brightened(chosen, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(first, expected)
    assert not torch.equal(first, second)


def test_what_fits_is_kept_on_the_device() -> None:
    """torch's meta device has shapes and no values."""
    prefix = nn.Conv2d(3, 7, 3, device="meta")
    kept = run_once(prefix, [images().float()], 2**30, 2, "meta")
    assert kept.device.type == "meta"
    batch = kept[torch.tensor([0, 0]), torch.tensor([4, 1])]  # as training takes one
    assert batch.device.type == "meta" and batch.shape == (2, 7, SIZE - 2, SIZE - 2)


def test_a_system_that_cannot_reserve_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    prefix = nn.Conv2d(3, 7, 3)
    kept = run_once(prefix, [images().float()], 0, 4)
    with torch.no_grad():
        torch.testing.assert_close(kept[0], prefix(images().float()), **CLOSE)


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DynammoError, match=r"No space left .*train\.cache_mb, or set TMPDIR"):
        run_once(nn.Conv2d(3, 7, 3), [images().float()], 0, 4)


def test_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        run_once(nn.Identity(), [images(0)], 0, 4)
