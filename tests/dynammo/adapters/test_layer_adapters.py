"""LoRA, SSF and the bottleneck by hand, and folded into a layer of every kind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, ConvMlp, LayerNorm2d, Mlp, SEModule, SwiGLU
from torch import Tensor, nn

from dynammo.adapters.bottleneck import BottleneckAdapter
from dynammo.adapters.lora import LoRAAdapter
from dynammo.adapters.ssf import ScaleShiftAdapter
from dynammo.network.adapted import AdaptedStage

TOKENS, MAP = (2, 5, 4), (2, 4, 6, 6)


def unsettled(module: nn.Module) -> nn.Module:
    """With weights and statistics that no initialisation gives."""
    generator = torch.Generator().manual_seed(0)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.data = 0.5 + noise if "var" in name else noise - 0.3
    return module.eval()


def difference_when_folded(kind: Any, layer: nn.Module, shape: tuple[int, ...]) -> float:
    """How far the folded layer is from the layer with its adapter; both differ from the bare."""
    layer = unsettled(layer)
    adapter = unsettled(kind(layer))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bare = layer(x).clone()
        adapted = AdaptedStage(adapter, layer)(x).clone()
        adapter.fold_into(layer)
        folded = layer(x)
    assert (adapted - bare).abs().max() > 0.01
    return float((folded - adapted).abs().max() / adapted.abs().max())


def test_lora_starts_as_peft_does() -> None:
    """peft: A from kaiming_uniform_(a=sqrt(5)), which is within 1 / sqrt(inputs); B zero."""
    torch.manual_seed(0)
    adapter = LoRAAdapter(nn.Linear(400, 30), rank=50, alpha=25)
    assert adapter.scaling == 0.5
    assert {name: tuple(value.shape) for name, value in adapter.state_dict().items()} == {
        "lora_A.weight": (50, 400),
        "lora_B.weight": (30, 50),
    }
    first = adapter.lora_A.weight
    assert first.abs().max().item() == pytest.approx(1 / math.sqrt(400), rel=1e-3)
    assert first.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    assert not adapter.lora_B.weight.any()
    stable = LoRAAdapter(nn.Linear(4, 4), rank=4, alpha=6, rank_stabilised=True)
    assert stable.scaling == 3


def test_lora_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    adapter = LoRAAdapter(layer, rank=1, alpha=3)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        adapter.lora_A.weight.copy_(torch.tensor([[1.0, 2.0]]))
        adapter.lora_B.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    # A x = 1 * 4 + 2 * 5 = 14, times 3 is 42.
    assert adapter(torch.tensor([4.0, 5.0])).tolist() == [42, -42]
    adapter.fold_into(layer)
    assert layer.weight.tolist() == [[4, 6], [-3, -5]]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 7), TOKENS),
        (nn.Linear(4, 7, bias=False), TOKENS),
        (nn.Conv2d(4, 7, 1), MAP),
        (nn.Conv2d(4, 7, 1, stride=2, bias=False), MAP),
    ],
)
def test_lora_folds(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert LoRAAdapter.choose({"layer": layer}) == ["layer"]
    assert difference_when_folded(LoRAAdapter, layer, shape) < 1e-6


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding=1), nn.ReLU()],
)
def test_lora_leaves_other_layers_alone(layer: nn.Module) -> None:
    assert LoRAAdapter.choose({"layer": layer}) == []


@pytest.mark.parametrize(
    ("layer", "shape", "place"),
    [
        (nn.Linear(4, 7), TOKENS, "after"),
        (nn.Linear(4, 7, bias=False), TOKENS, "after"),
        (nn.LayerNorm(4), TOKENS, "after"),
        (nn.LayerNorm(4, bias=False), TOKENS, "after"),
        (LayerNorm2d(4), MAP, "after"),
        (nn.GroupNorm(2, 4), MAP, "after"),
        (nn.Conv2d(4, 6, 3, groups=2), MAP, "after"),
        (nn.BatchNorm2d(4), MAP, "before"),
        (BatchNormAct2d(4), MAP, "before"),  # its ReLU is behind what is scaled
    ],
)
def test_ssf_folds(layer: nn.Module, shape: tuple[int, ...], place: str) -> None:
    assert ScaleShiftAdapter.choose({"layer": layer}) == ["layer"]
    adapter = ScaleShiftAdapter(layer)
    assert adapter.place == place
    assert (adapter.shift is None) == (layer.bias is None)
    assert difference_when_folded(ScaleShiftAdapter, layer, shape) < 1e-6


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.GELU(), nn.RMSNorm(4)],
)
def test_ssf_leaves_other_layers_alone(layer: nn.Module) -> None:
    assert ScaleShiftAdapter.choose({"layer": layer}) == []


def test_ssf_by_hand() -> None:
    adapter = ScaleShiftAdapter(nn.Linear(2, 2))
    with torch.no_grad():
        adapter.scale.copy_(torch.tensor([0.5, -1.0]))
        adapter.shift.copy_(torch.tensor([0.0, 7.0]))
    stage = AdaptedStage(adapter, nn.Identity())
    assert stage(torch.tensor([4.0, 9.0])).tolist() == [6, 7]  # 1.5 * 4; 0 * 9 + 7


def test_ssf_may_start_as_published() -> None:
    torch.manual_seed(0)
    adapter = ScaleShiftAdapter(nn.Linear(2, 4000), deviation=0.02)
    for parameter in adapter.parameters():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_bottleneck_by_hand() -> None:
    adapter = BottleneckAdapter(Mlp(2, 8), width=2, scale=0.5)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        adapter.up.weight.copy_(torch.tensor([[2.0, 2.0], [0.0, 4.0]]))
        adapter.up.bias.copy_(torch.tensor([1.0, 0.0]))
    # ReLU makes (3, -5) to (3, 0); up gives (2 * 3 + 1, 0), and half of it is added.
    assert adapter(torch.tensor([3.0, -5.0])).tolist() == [3.5, 0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Mlp(4, 9), TOKENS), (SwiGLU(4, 9), TOKENS), (ConvMlp(4, 9), MAP)],
)
@pytest.mark.parametrize(("mode", "place"), [("parallel", "beside"), ("serial", "after")])
def test_the_bottleneck_stands_at_mlps(
    layer: nn.Module, shape: tuple[int, ...], mode: Any, place: str
) -> None:
    modules = dict(nn.ModuleDict({"mlp": layer, "conv": nn.Conv2d(4, 4, 3)}).named_modules())
    assert BottleneckAdapter.choose(modules) == ["mlp"]
    adapter = unsettled(BottleneckAdapter(layer, width=3, mode=mode))
    x = torch.randn(shape)
    with torch.no_grad():
        bare: Tensor = layer.eval()(x)
        residual = adapter(x if place == "beside" else bare)
        torch.testing.assert_close(AdaptedStage(adapter, layer)(x), bare + residual)
    assert residual.abs().max() > 0


def test_without_mlps_the_bottleneck_stands_at_convolutions() -> None:
    kept = {"dense": nn.Conv2d(4, 4, 3, padding=1), "depthwise": nn.Conv2d(4, 4, 5, groups=4)}
    other = {
        "pointwise": nn.Conv2d(4, 4, 1),
        "wider": nn.Conv2d(4, 8, 3),
        "strided": nn.Conv2d(4, 4, 3, stride=2),
        "gate": SEModule(16, rd_ratio=0.5),
    }
    assert BottleneckAdapter.choose({**kept, **other}) == ["dense", "depthwise"]
    for layer in kept.values():
        assert BottleneckAdapter(layer, width=2)(torch.randn(MAP)).shape == MAP


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LoRAAdapter, {"rank": 0}, "rank must be at least 1, got 0"),
        (ScaleShiftAdapter, {"deviation": -1}, "deviation must be at least 0, got -1"),
        (BottleneckAdapter, {"width": 0}, "width must be at least 1, got 0"),
        (BottleneckAdapter, {"mode": "both"}, "mode must be one of parallel, serial, got 'both'"),
    ],
)
def test_wrong_values_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(nn.Linear(4, 4), **options)
