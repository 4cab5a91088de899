"""Statistics of a trained adapter on its task's images, for merge rules that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import MergeConfig
from dynammo.data.formats.pictures import Form, form_of
from dynammo.errors import ConfigError
from dynammo.heads.linear import new_head
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import check_options, inputs_of
from dynammo.network.network import Network
from dynammo.state import State
from dynammo.training.frozen_prefix import split_at_first_adapter


def diagonal_fisher(network: Network, head: State, images: Tensor, limit: int = 512) -> State:
    """The diagonal of the Fisher information of the adapters' parameters,

        f^p = mean_x sum_y p(y|x) (d log p(y|x) / d theta^p)^2,

    with the expectation over the classes y taken exactly: for each image as many backward passes
    as the head has outputs. The network is in eval mode, so BatchNorm does not mix images.

    Args:
        network: with the trained adapters.
        head: `weight` (K, D) and `bias` (K,), the head that the adapter was trained with.
        images: (N, 3, H, W) uint8, the task's.
        limit: of more images than that, so many are used, drawn at random but always the same.

    Returns:
        f, named as the adapters' state, without buffers; float32 on the CPU.

    Source: arXiv 2111.09832.
    """
    if len(images) > limit:
        generator = torch.Generator().manual_seed(0)
        images = images[torch.randperm(len(images), generator=generator)[:limit]]
    network.eval()
    device = next(network.parameters()).device
    weight, bias = head["weight"].to(device), head["bias"].to(device)
    parameters = {
        f"{position}.{name}": parameter
        for position, adapter in network.adapters().items()
        for name, parameter in adapter.named_parameters()
    }
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    prefix, suffix = split_at_first_adapter(network)
    for image in images.split(1):
        with torch.no_grad():
            inputs = prefix(image.to(device))
        logs = functional.log_softmax(functional.linear(suffix(inputs), weight, bias), dim=1)[0]
        for log in logs:
            gradients = torch.autograd.grad(log, list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += log.detach().exp() * gradient.square()
    return {name: (value / len(images)).cpu() for name, value in total.items()}


@torch.no_grad()
def gram_matrices(network: Network, images: Tensor, batch_size: int = 64) -> State:
    """G = mean over pixels and images of (x, 1)(x, 1)^T, x (C,) what a 1x1 convolution is given.

    The 1 stands for the bias; without one G is of x alone.

    Args:
        network: with the trained adapters, all of whose parameters belong to 1x1 convolutions.
        images: (N, 3, H, W) uint8, the task's.
        batch_size: images at a time.

    Returns:
        name of a convolution -> (C + 1, C + 1), or (C, C) without bias; float64 on the CPU.

    Raises:
        ConfigError: an adapter has other parameters.

    Source: arXiv 2212.09849, there without the 1 and as sums.
    """
    layers = {
        name: module
        for position, adapter in network.adapters().items()
        for name, module in adapter.named_modules(prefix=position)
        if [*module.parameters(recurse=False)]
    }
    if other := [f"{n} ({type(m).__name__})" for n, m in layers.items() if not _is_pointwise(m)]:
        raise ConfigError([f"needs adapters of 1x1 convolutions only, found {', '.join(other)}"])
    total: dict[str, Tensor] = {}
    rows = dict.fromkeys(layers, 0)

    def note(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].movedim(1, -1).flatten(0, -2)
        if module.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        gram = (x.T @ x).cpu().double()  # there is no float64 on some devices
        total[name] = total[name] + gram if name in total else gram
        rows[name] += len(x)

    handles = [
        module.register_forward_pre_hook(partial(note, name)) for name, module in layers.items()
    ]
    network.eval()
    device = next(network.parameters()).device
    try:
        for batch in images.split(batch_size):
            network(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: gram / rows[name] for name, gram in total.items()}


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


# Merge rules' inputs that are measured on an adapter: from network, its task's head and images.
STATISTICS: dict[str, Callable[[Network, State, Tensor], State]] = {
    "fisher": diagonal_fisher,
    "grams": lambda network, head, images: gram_matrices(network, images),
}


def check_rule(config: MergeConfig, network: Network, form: Form | int) -> None:
    """Try a merge rule with its options on one untrained adapter, before anything is trained.

    Args:
        config: rule and options.
        network: any with the adapters that will be merged; its weights do not matter.
        form: of its images, or the side of pictures in pixels.

    Raises:
        ConfigError: unknown options or wrong values, or a rule that these adapters do not suit.
    """
    rule = MERGE_RULES[config.rule]
    check_options(config.rule, config.options)
    wanted = inputs_of(rule)
    state = network.adapter_state()
    form = form_of(form)
    image = torch.zeros(1, 3, form.height, form.size, dtype=torch.uint8)
    head = new_head(network.feature_size, 2, seed=0)
    inputs: dict[str, Any] = {"samples": [1], "base": state, "seed": 0}
    try:
        for name in wanted & STATISTICS.keys():
            inputs[name] = [STATISTICS[name](network, head, image)]
        rule([state], **{name: inputs[name] for name in wanted}, **config.options)
    except ConfigError as error:
        raise ConfigError([f"merge.rule {config.rule!r}: {p}" for p in error.problems]) from None
    except (TypeError, ValueError) as error:
        raise ConfigError([f"merge.options for {config.rule!r}: {error}"]) from None
