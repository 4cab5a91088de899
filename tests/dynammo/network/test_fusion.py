import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.network.backbones import pretrained_weights
from dynammo.network.folding import cheapen
from dynammo.network.fusion import batch_norms, fuse_batch_norms
from dynammo.network.network import build_network

SIZE = 64


def unsettled(module: nn.Module) -> nn.Module:
    """In eval mode, with statistics and gains that are anything but neutral."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight, mean=1, std=0.3)
                nn.init.normal_(part.bias)
    return module.eval()


def program(module: nn.Module, x: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch")},))


@pytest.mark.parametrize(
    ("name", "last", "adapter"),
    [
        ("tf_efficientnet_lite0", "blocks.4", "linear"),
        ("mobilenetv2_100", "blocks.4", "conv"),
        ("mobilenetv3_small_100", "blocks.2", "linear"),
        ("resnet18", "layer1", "linear"),  # cannot be folded
        ("resnet18", "layer4", "conv"),
        ("regnety_002", "s3", "conv"),
    ],
)
def test_a_network_computes_the_same_without_batch_norms(
    name: str, last: str, adapter: str
) -> None:
    config = BackboneConfig(name=name, pretrained=False, positions=[last])
    options = {"alpha": -0.5} if adapter == "conv" else {}
    kind = AdapterConfig(name=adapter, options=options)
    network = unsettled(build_network(config, pretrained_weights(config, 0), SIZE, kind))
    for parameter in network.adapter_parameters():
        if adapter == "linear":
            nn.init.normal_(parameter, std=0.1)
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    traced = program(cheapen(network), images[:2])
    before = batch_norms(traced.module())
    fused = fuse_batch_norms(traced).module
    assert before > 5
    assert batch_norms(fused) == 0
    assert not [name for name, _ in fused.named_buffers() if "running" in name]
    with torch.no_grad():
        expected, answer = network(images), fused(images)
    assert (answer - expected).abs().max() < 1e-5 * expected.abs().max()


class Twice(nn.Module):
    """A convolution whose output goes into its BatchNorm and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        output: Tensor = self.norm(y) + y
        return output


class Standardised(nn.Module):
    """A kernel that is computed from the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.convolution.weight / self.convolution.weight.std()
        output: Tensor = self.norm(nn.functional.conv2d(x, kernel))
        return output


class Shared(nn.Module):
    """One convolution before two BatchNorms: it must become two."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.convolution(x))
        return x


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, stride=2), nn.BatchNorm2d(6)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), 0),
        (nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)), 0),
        (Shared(), 0),
        (nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 1),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        (Twice(), 1),
        (Standardised(), 1),
    ],
)
def test_only_a_batch_norm_right_behind_a_constant_kernel_goes(
    module: nn.Module, left: int
) -> None:
    unsettled(module)
    x = torch.randn(2, 3, 7, 7)
    fused: fx.GraphModule = fuse_batch_norms(program(module, x)).module
    assert batch_norms(fused) == left
    with torch.no_grad():
        torch.testing.assert_close(fused(x), module(x), atol=1e-5, rtol=1e-4)


def test_a_fused_graph_can_be_exported_again_for_any_batch() -> None:
    module = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(5, 3, 7, 7)
    again = program(fuse_batch_norms(program(module, x[:2])).module, x[:2])
    assert len(again.state_dict) == 2  # one kernel, one bias
    with torch.no_grad():
        torch.testing.assert_close(again.module()(x), module(x), atol=1e-5, rtol=1e-4)


def test_training_statistics_are_left_alone() -> None:
    module = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    fused = fuse_batch_norms(program(module, torch.randn(2, 3, 7, 7))).module
    assert batch_norms(fused) == 1
