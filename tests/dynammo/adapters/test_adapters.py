import pytest
import torch
from torch import nn

from dynammo.adapters import ADAPTERS
from dynammo.adapters.base import LayerAdapter
from dynammo.adapters.conv import ConvAdapter
from dynammo.adapters.linear import LinearAdapter

BETWEEN_STAGES = [name for name in ADAPTERS if not hasattr(ADAPTERS[name], "choose")]
FOR_LAYERS = [name for name in ADAPTERS if name not in BETWEEN_STAGES]


@pytest.mark.parametrize("name", FOR_LAYERS)
def test_an_adapter_for_a_layer_starts_from_the_pretrained_network(name: str) -> None:
    make = ADAPTERS[name]
    assert issubclass(make, LayerAdapter)
    modules = {
        "linear": nn.Linear(4, 4),
        "mlp": nn.ModuleDict({"fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 4)}),
    }
    chosen = make.choose(modules)
    assert chosen
    for layer in chosen:
        adapter = make(modules[layer])
        assert adapter.place in ("before", "beside", "after")
        x = torch.randn(2, 3, 4)
        assert adapter(x).shape == x.shape
        assert not adapter(x).any()


@pytest.mark.parametrize("name", BETWEEN_STAGES)
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (3, 4, 3, 3)])
def test_the_residual_has_the_shape_of_the_input(name: str, shape: tuple[int, ...]) -> None:
    adapter = ADAPTERS[name](4).eval()
    assert adapter(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("name", BETWEEN_STAGES)
def test_the_smallest_map_is_as_declared(name: str) -> None:
    make = ADAPTERS[name]
    smallest = torch.randn(2, 4, make.min_size, make.min_size)
    assert make(4).eval()(smallest).shape == smallest.shape
    if make.min_size > 1:
        with pytest.raises(RuntimeError):
            make(4).eval()(smallest[..., 1:, 1:])


def test_conv_adapter_is_the_papers() -> None:
    adapter = ConvAdapter(4)
    kinds = [type(module) for module in adapter.children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d, nn.BatchNorm2d]
    assert adapter.alpha.item() == pytest.approx(0.02)
    assert adapter.down.padding == (0, 0)
    # 2 convolutions of 9 * 4^2 weights and 4 biases, 2 BatchNorms of 2 * 4, alpha.
    assert sum(p.numel() for p in adapter.parameters()) == 18 * 16 + 6 * 4 + 1


def test_conv_adapter_by_hand() -> None:
    """One channel, a 3x3 image: the convolution sees the whole image once."""
    adapter = ConvAdapter(1, alpha=0.5).eval()
    with torch.no_grad():
        adapter.down.weight.fill_(1.0)
        adapter.down.bias.zero_()
        adapter.up.weight.fill_(2.0)
        adapter.up.bias.fill_(-1.0)
    residual = adapter(torch.ones(1, 1, 3, 3))
    # Sum of nine ones is 9; times 2, minus 1 is 17 at every pixel; alpha halves it. The two
    # BatchNorms in eval mode each divide by sqrt(1 + 1e-5).
    norm = (1 + 1e-5) ** -0.5
    assert torch.allclose(residual, torch.full((1, 1, 3, 3), 0.5 * (18 * norm - 1) * norm))


def test_alpha_zero_is_no_adapter() -> None:
    assert not ConvAdapter(3, alpha=0.0).eval()(torch.randn(2, 3, 8, 8)).any()


def test_linear_adapter_starts_at_zero_and_is_linear() -> None:
    adapter = LinearAdapter(3)
    x, y = torch.randn(2, 1, 3, 4, 4)
    assert not adapter(x).any()
    nn.init.normal_(adapter.mix.weight)
    assert torch.allclose(adapter(x + 2 * y), adapter(x) + 2 * adapter(y), atol=1e-5)
