"""A frozen backbone with adapters in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynammo.adapters import ADAPTERS
from dynammo.config import AdapterConfig, ArchitectureConfig
from dynammo.data.formats.pictures import Form, form_of
from dynammo.errors import CheckpointError, ConfigError
from dynammo.merging.layout import check_same_layout
from dynammo.network.adapted import AdaptedStage, ParallelAdapters
from dynammo.network.backbones import create_backbone, normalisation
from dynammo.network.layouts import Layout, holds_copies, intermediate_maps, layout_of
from dynammo.network.multilevel import level_features
from dynammo.network.probe import check_names, passed_by_images, probe
from dynammo.network.slices import POOLS, apart
from dynammo.network.stages import default_positions, default_stages
from dynammo.state import State


class Network(nn.Module):
    """Images in, features out: normalisation, frozen backbone, adapters.

    Args:
        backbone: a frozen network without classifier; adapters are put into it in place.
        mean, std: per RGB channel, for pixel values in 0..1.
        wrap: builds the module that replaces another, from (layout of what that is given, index,
            module); none leaves the backbone bare.
        positions: names of the modules to wrap, in any order.
        form: of the images, or the side of pictures in pixels.
        min_size: the smallest feature map an adapter takes, in pixels; none: it is made for a layer
            (`dynammo.adapters.base.LayerAdapter`), whatever that takes, and there is no layout.
        levels: take features from so many levels of resolution (`dynammo.network.multilevel`);
            none: from the backbone's last layer.
        copies: of each image, for `ParallelAdapters`: the module at the first position makes them
            or, where it cannot (`dynammo.network.layouts.holds_copies`), the network itself.
        units: names of modules, none of them in another, that hold the positions; default: the
            positions.
        pool: how the features of a volume's slices become its own (`dynammo.network.slices`).

    Raises:
        ConfigError: a position does not exist, is not on the path of the image, carries no map or
            tokens, or has a feature map smaller than `min_size`; all problems at once.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        wrap: Callable[[Any, int, nn.Module], nn.Module] | None = None,
        positions: Sequence[str] = (),
        form: Form | int = 224,
        min_size: int | None = 1,
        levels: int | None = None,
        copies: int = 1,
        units: Sequence[str] | None = None,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        size, self.slices, _ = form_of(form)
        self.pool = POOLS[pool]
        self.backbone = backbone
        self.copies = copies
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        check_names(backbone, positions)
        probed = probe(backbone, positions, size, levels)
        layouts = _layouts(backbone, positions, probed.shapes, size, min_size)
        self.signed = probed.signed
        self.feature_size = self.of_volumes(probed.features.repeat(self.slices, 1)).shape[1]
        self.positions = list(layouts)
        first = next(iter(layouts.values()), None)
        self.copied = 1 if holds_copies(first) else copies  # before the backbone
        self.units = self.positions if units is None else list(units)
        if wrap is not None:
            for index, (name, layout) in enumerate(layouts.items()):
                stage = backbone.get_submodule(name)
                backbone.set_submodule(name, wrap(layout, index, stage))
        # Depthwise convolutions are up to twice as fast in this layout (benchmarks/README.md).
        for weight in backbone.parameters():
            if weight.dim() == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def normalised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB pixels in 0..255 as the backbone takes them: strips as their slices."""
        if self.slices > 1:
            images = apart(images, self.slices)
        pixels = images.float().contiguous(memory_format=torch.channels_last)
        return (pixels - self.mean) / self.std

    def of_volumes(self, features: Tensor) -> Tensor:
        """Of slices (B * S, D) those of volumes (B, D'); of pictures they are as they are."""
        if self.slices == 1:
            return features
        return self.pool(features.unflatten(0, (-1, self.slices)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB pixels in 0..255, uint8 or float -> features (B, D).

        Of volumes H is that of the strip.
        """
        pixels = self.normalised(images)
        if self.copied > 1:
            pixels = torch.cat([pixels] * self.copied)
        if self.signed is not None:
            maps = intermediate_maps(self.backbone, pixels, len(self.signed))
            return self.of_volumes(level_features(maps, self.signed, self.copies))
        features: Tensor = self.backbone(pixels)
        return self.of_volumes(features)

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
    form: Form | int,
    adapter: AdapterConfig | None = None,
    seed: int = 0,
) -> Network:
    """The backbone alone (`adapter` none) or with one freshly initialised adapter a position.

    Args:
        config: names the backbone and the positions.
        weights: the backbone's state dict; none leaves it random, which is enough to count
            its work.
        form: of the images, or the side of pictures in pixels.
        adapter: the kind of adapter.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: see `Network`; or the adapter does not take the given options.
    """
    form = form_of(form)
    backbone = create_backbone(config.name, weights, config.levels, form.size)
    if adapter is None:
        mean, std = normalisation(backbone)
        bare = Network(backbone, mean, std, form=form, levels=config.levels, pool=config.pool)
        return bare.eval()
    plan = _plan(config, backbone, form.size, adapter)

    def wrap(layout: Layout | None, index: int, stage: nn.Module) -> nn.Module:
        return AdaptedStage(plan.adapter(layout, stage), stage, layout)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return plan.network(backbone, form, config, wrap).eval()


def build_unmerged_network(
    config: ArchitectureConfig,
    weights: State | None,
    form: Form | int,
    adapter: AdapterConfig,
    states: Sequence[State],
) -> Network:
    """The backbone with n adapters side by side: (B, 3, H, W) -> features (n * B, D), adapter by
    adapter. What lies before the first adapter runs once.

    Raises:
        ConfigError, CheckpointError: as `build_network` and `Network.load_adapter_state`.
    """
    form = form_of(form)
    backbone = create_backbone(config.name, weights, config.levels, form.size)
    plan = _plan(config, backbone, form.size, adapter)
    count = len(states)
    sets: list[list[nn.Module]] = [[] for _ in states]  # of each state, by position

    def wrap(layout: Layout | None, index: int, stage: nn.Module) -> nn.Module:
        adapters = [plan.adapter(layout, stage) for _ in states]
        for own, one in zip(sets, adapters, strict=True):
            own.append(one)
        copies = count if index == 0 and holds_copies(layout) else 1
        return AdaptedStage(ParallelAdapters(adapters), stage, layout, copies)

    with torch.random.fork_rng(devices=[]):
        network = plan.network(backbone, form, config, wrap, count)
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


class _Plan(NamedTuple):
    """Where adapters of a kind go in a backbone, and what makes one."""

    make: Callable[[Any], nn.Module]  # of the channels, or of the layer
    positions: list[str]
    units: list[str]
    min_size: int | None

    def adapter(self, layout: Layout | None, stage: nn.Module) -> nn.Module:
        """An adapter for a module that is given what `layout` says; none: for a layer."""
        return self.make(stage if layout is None else layout.channels)

    def network(
        self,
        backbone: nn.Module,
        form: Form,
        config: ArchitectureConfig,
        wrap: Callable[[Any, int, nn.Module], nn.Module],
        copies: int = 1,
    ) -> Network:
        """The backbone with what `wrap` makes of its modules at these places; see `Network`."""
        mean, std = normalisation(backbone)
        return Network(
            backbone,
            mean,
            std,
            wrap,
            self.positions,
            form,
            self.min_size,
            config.levels,
            copies,
            self.units,
            config.pool,
        )


def _plan(
    config: ArchitectureConfig, backbone: nn.Module, size: int, adapter: AdapterConfig
) -> _Plan:
    """Adapters for layers go to all layers of their kind in the modules at the positions, by
    default in the last four stages; others go before the modules, by default before each stage.
    """
    kind: Any = ADAPTERS[adapter.name]

    def make(target: Any) -> nn.Module:
        try:
            module: nn.Module = kind(target, **adapter.options)
            return module
        except (TypeError, ValueError) as error:
            raise ConfigError([f"adapter.options for {adapter.name!r}: {error}"]) from None

    if not hasattr(kind, "choose"):
        positions = list(config.positions or default_positions(backbone))
        return _Plan(make, positions, positions, getattr(kind, "min_size", 1))
    units = config.positions or [name for stage in default_stages(backbone) for name in stage]
    check_names(backbone, units)
    inside = {
        name: module
        for name, module in backbone.named_modules()
        if any(f"{name}.".startswith(f"{unit}.") for unit in units)
    }
    layers = passed_by_images(backbone, kind.choose(inside), size, config.levels)
    if not layers:
        raise ConfigError(
            [f"backbone.positions: no layer in {', '.join(units)} takes the adapter {adapter.name}"]
        )
    held = [unit for unit in units if any(f"{name}.".startswith(f"{unit}.") for name in layers)]
    return _Plan(make, layers, held, None)


def _layouts(
    backbone: nn.Module,
    positions: Sequence[str],
    shapes: Mapping[str, torch.Size],
    size: int,
    min_size: int | None,
) -> dict[str, Layout | None]:
    """The layout at each position, in order of execution; none for layers."""
    problems = []
    found: dict[str, Layout | None] = {}
    for name in [*shapes, *(name for name in positions if name not in shapes)]:
        try:
            if name not in shapes:
                raise ValueError("is not on the image's path")
            layout = min_size and layout_of(backbone, shapes[name], neighbours=min_size > 1)
        except ValueError as error:
            problems.append(f"backbone.positions: {name!r} {error}")
            continue
        if layout and min_size and layout.side < min_size:
            problems.append(
                f"image.size {size} leaves {layout.side}x{layout.side} pixels before {name!r}, the "
                f"adapter needs {min_size}x{min_size}: enlarge the images or give fewer positions"
            )
        found[name] = layout or None
    if problems:
        raise ConfigError(problems)
    return found
