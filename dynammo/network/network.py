"""A frozen backbone with adapters between its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dynammo.adapters import ADAPTERS
from dynammo.config import AdapterConfig, ArchitectureConfig
from dynammo.errors import CheckpointError, ConfigError
from dynammo.merging.layout import check_same_layout
from dynammo.network.backbones import create_backbone, default_positions, normalisation
from dynammo.network.multilevel import level_features, level_maps, signed_levels
from dynammo.state import State


class AdaptedStage(nn.Module):
    """A stage with an adapter in front of it: stage(x + A(x))."""

    def __init__(self, adapter: nn.Module, stage: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the stage's output."""
        output: Tensor = self.stage(x + self.adapter(x))
        return output


class ParallelAdapters(nn.Module):
    """n adapters side by side, for the unmerged model.

    The batch carries n copies of every image, one an adapter, laid out as (n * B, C, H, W). The
    first position receives (B, C, H, W) and makes the copies, so that what lies before it runs
    once.
    """

    def __init__(self, adapters: Sequence[nn.Module], first: bool) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """(B or n * B, C, H, W) -> x + A_k(x) for every k, (n * B, C, H, W)."""
        count = len(self.adapters)
        parts = [x] * count if self.first else list(x.chunk(count))
        return torch.cat(
            [part + adapter(part) for part, adapter in zip(parts, self.adapters, strict=True)]
        )


class Network(nn.Module):
    """Images in, features out: normalisation, frozen backbone, adapters.

    Args:
        backbone: a frozen network without classifier; adapters are put into it in place.
        mean, std: per RGB channel, for pixel values in 0..1.
        wrap: builds the module that replaces a stage, from (channels, index, stage); none leaves
            the backbone bare.
        positions: names of the stages to wrap, in any order.
        size: side of the images in pixels.
        min_size: the smallest feature map an adapter takes, in pixels.
        levels: take features from so many levels of resolution (`dynammo.network.multilevel`);
            none: from the backbone's last layer.
        copies: of each image that `wrap`'s modules make (`ParallelAdapters`).

    Raises:
        ConfigError: a position does not exist, is not on the path of the image, carries no (B, C,
            H, W) tensor, or has a feature map smaller than `min_size`; all problems at once.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        wrap: Callable[[int, int, nn.Module], nn.Module] | None = None,
        positions: Sequence[str] = (),
        size: int = 224,
        min_size: int = 1,
        levels: int | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.copies = copies
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        probed = _probe(backbone, positions, size, min_size, levels)
        shapes, self.signed, self.feature_size = probed
        self.positions = list(shapes)
        if wrap is not None:
            for index, (name, shape) in enumerate(shapes.items()):
                stage = backbone.get_submodule(name)
                backbone.set_submodule(name, wrap(shape[1], index, stage))
        # Depthwise convolutions are up to twice as fast in this layout (benchmarks/README.md).
        for weight in backbone.parameters():
            if weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB pixels in 0..255, uint8 or float -> features (B, D)."""
        pixels = images.float().contiguous(memory_format=torch.channels_last)
        pixels = (pixels - self.mean) / self.std
        if self.signed is not None:
            maps = level_maps(self.backbone, pixels, len(self.signed))
            return level_features(maps, self.signed, self.copies)
        features: Tensor = self.backbone(pixels)
        return features

    def stages(self) -> dict[str, nn.Module]:
        """Position -> the module standing there."""
        return {name: self.backbone.get_submodule(name) for name in self.positions}

    def adapters(self) -> dict[str, nn.Module]:
        """Position -> adapter, in the order in which the image meets them."""
        stages = self.stages().items()
        return {name: s.adapter for name, s in stages if isinstance(s, AdaptedStage)}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What training changes."""
        return [p for adapter in self.adapters().values() for p in adapter.parameters()]

    def backbone_state(self) -> State:
        """A copy of the frozen weights under the bare backbone's names, on the CPU."""
        state = self.backbone.state_dict()
        for position in self.adapters():
            state = {
                key.replace(f"{position}.stage.", f"{position}.", 1)
                if key.startswith(f"{position}.stage.")
                else key: value
                for key, value in state.items()
                if not key.startswith(f"{position}.adapter.")
            }
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def adapter_state(self) -> State:
        """A copy of all adapters' weights and buffers, named `position.name`, on the CPU."""
        return _state(self.adapters())

    def load_adapter_state(self, state: State) -> None:
        """Load what `adapter_state` gave; validates before anything is changed.

        Raises:
            CheckpointError: a name or a shape does not fit this network.
        """
        _load_state(self.adapters(), state)

    def train(self, mode: bool = True) -> Network:
        """Only adapters ever leave eval mode: the backbone's BatchNorm statistics stay frozen."""
        super().train(False)
        for adapter in self.adapters().values():
            adapter.train(mode)
        return self


def build_network(
    config: ArchitectureConfig,
    weights: State | None,
    size: int,
    adapter: AdapterConfig | None = None,
    seed: int = 0,
) -> Network:
    """The backbone alone (`adapter` none) or with one freshly initialised adapter a position.

    Args:
        config: names the backbone and the positions.
        weights: the backbone's state dict; none leaves it random, which is enough to count its
        work.
        size: side of the images in pixels.
        adapter: the kind of adapter.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: see `Network`; or the adapter does not take the given options.
    """
    backbone = create_backbone(config.name, weights, config.levels)
    mean, std = normalisation(config.name)
    if adapter is None:
        return Network(backbone, mean, std, size=size, levels=config.levels).eval()
    make, positions, smallest = _choose(config, backbone, adapter)

    def wrap(channels: int, index: int, stage: nn.Module) -> nn.Module:
        return AdaptedStage(make(channels), stage)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(backbone, mean, std, wrap, positions, size, smallest, config.levels).eval()


def build_unmerged_network(
    config: ArchitectureConfig,
    weights: State | None,
    size: int,
    adapter: AdapterConfig,
    states: Sequence[State],
) -> Network:
    """The backbone with n adapters side by side: (B, 3, H, W) -> features (n * B, D), adapter by
    adapter. What lies before the first adapter runs once.

    Raises:
        ConfigError, CheckpointError: as `build_network` and `Network.load_adapter_state`.
    """
    backbone = create_backbone(config.name, weights, config.levels)
    mean, std = normalisation(config.name)
    make, positions, smallest = _choose(config, backbone, adapter)
    sets: list[list[nn.Module]] = [[] for _ in states]  # of each state, by position

    def wrap(channels: int, index: int, stage: nn.Module) -> nn.Module:
        adapters = [make(channels) for _ in states]
        for own, one in zip(sets, adapters, strict=True):
            own.append(one)
        return nn.Sequential(ParallelAdapters(adapters, first=index == 0), stage)

    with torch.random.fork_rng(devices=[]):
        network = Network(
            backbone, mean, std, wrap, positions, size, smallest, config.levels, len(states)
        )
    for own, state in zip(sets, states, strict=True):
        _load_state(dict(zip(network.positions, own, strict=True)), state)
    return network.eval()


def _state(adapters: Mapping[str, nn.Module]) -> State:
    return {
        f"{position}.{name}": value.detach().cpu().clone()
        for position, adapter in adapters.items()
        for name, value in adapter.state_dict().items()
    }


def _load_state(adapters: Mapping[str, nn.Module], state: State) -> None:
    try:
        check_same_layout(_state(adapters), state)
    except ValueError as error:
        raise CheckpointError(f"the adapter does not fit this network: {error}") from None
    for position, adapter in adapters.items():
        prefix = f"{position}."
        adapter.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def _choose(
    config: ArchitectureConfig, backbone: nn.Module, adapter: AdapterConfig
) -> tuple[Callable[[int], nn.Module], Sequence[str], int]:
    """What makes an adapter of so many channels, where adapters go, and their smallest map."""
    kind = ADAPTERS[adapter.name]

    def make(channels: int) -> nn.Module:
        try:
            return kind(channels, **adapter.options)
        except TypeError as error:
            raise ConfigError([f"adapter.options for {adapter.name!r}: {error}"]) from None

    positions = config.positions or default_positions(backbone)
    return make, positions, getattr(kind, "min_size", 1)


def _probe(
    backbone: nn.Module, positions: Sequence[str], size: int, min_size: int, levels: int | None
) -> tuple[dict[str, torch.Size], list[bool] | None, int]:
    """One image of noise through the bare backbone: the input's shape at each position, in order of
    execution; whether each level has negative values, none without levels; the number of features.
    """
    known = [name for name, _ in backbone.named_modules() if name]
    upper = ", ".join(name for name in known if name.count(".") < 2)
    problems = [
        f"backbone.positions: there is no module {name!r}; known: {upper}, and those inside them"
        for name in positions
        if name not in known
    ]
    if len(set(positions)) != len(positions):
        problems.append(f"backbone.positions names a module twice: {list(positions)}")
    problems += [
        f"backbone.positions: {inner!r} is inside {outer!r}"
        for inner in positions
        for outer in positions
        if inner.startswith(f"{outer}.")
    ]
    if problems:
        raise ConfigError(problems)
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: shapes.__setitem__(name, inputs[0].shape)

    handles = [
        backbone.get_submodule(name).register_forward_pre_hook(note(name)) for name in positions
    ]
    try:
        noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        signed = None
        with torch.no_grad():
            if levels is None:
                features = backbone(noise)
            else:
                maps = level_maps(backbone, noise, levels)
                signed = signed_levels(maps)
                features = level_features(maps, signed)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError([f"image.size {size} does not suit this backbone: {reason}"]) from None
    finally:
        for handle in handles:
            handle.remove()
    for name in positions:
        shape = shapes.get(name)
        if shape is None:
            problems.append(f"backbone.positions: {name!r} is not on the image's path")
        elif len(shape) != 4:
            problems.append(f"backbone.positions: {name!r} takes {tuple(shape)}, not (B, C, H, W)")
        elif min(shape[2:]) < min_size:
            problems.append(
                f"image.size {size} leaves {shape[2]}x{shape[3]} pixels before {name!r}, the "
                f"adapter needs {min_size}x{min_size}: enlarge the images or give fewer positions"
            )
    if problems:
        raise ConfigError(problems)
    return shapes, signed, features.shape[1]
