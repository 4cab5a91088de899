"""The frozen prefix: what comes before the first adapter gives the same output in every epoch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, fx, nn

from dynammo.errors import DynammoError
from dynammo.network.features import brightened
from dynammo.network.network import Network
from dynammo.network.tracing import as_module, trace


def split_at_first_adapter(network: Network) -> tuple[nn.Module, nn.Module]:
    """Cut a network in two, sharing its modules: suffix(prefix(images)) = network(images).

    The prefix holds nothing that is trained. Where a backbone cannot be cut (something goes round
    its first adapter, or its forward pass cannot be traced), the prefix does nothing and the suffix
    is the whole network.

    Returns:
        prefix, (B, 3, H, W) -> what the first adapter's stage, or the first unit that holds an
        adapter, takes, and suffix, that -> (B, D). Of volumes the former is (B, S, ...).
    """
    whole = nn.Identity(), network
    if not network.adapters():
        return whole
    position = network.positions[0]
    first = next(unit for unit in network.units if f"{position}.".startswith(f"{unit}."))
    try:
        graph = trace(_Tracer(network.units), network)
    except Exception:  # a backbone's own code ran, on stand-ins for tensors: anything may come
        return whole
    cut = next((node for node in graph.nodes if node.target == f"backbone.{first}"), None)
    if cut is None or len(cut.all_input_nodes) != 1:
        return whole
    try:
        before, after = _before(network, graph, cut), _after(network, graph, cut)
    except KeyError:
        return whole
    if network.slices == 1:
        return before, after
    return (  # a row an image, whatever the number of its slices
        nn.Sequential(before, nn.Unflatten(0, (-1, network.slices))),
        nn.Sequential(nn.Flatten(0, 1), after),
    )


def run_once(
    prefix: nn.Module,
    views: Sequence[Tensor],
    memory: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The prefix's outputs for all images in all augmentation views.

    Args:
        prefix: frozen.
        views: V tensors (N, 3, H, W) of the same images.
        memory: up to how many bytes are kept in the device's memory; more go into a temporary file,
            which is mapped into the CPU's and deleted with the tensor. It is where temporary files
            are (the environment variable TMPDIR).
        batch_size: images at a time.
        device: where the prefix is.

    Returns:
        (V, N, ...), on the device or, from a file, on the CPU; maps (..., C, H, W) are laid out
        with C as the last axis.

    Raises:
        DynammoError: there is no room for the file.
    """
    kept: Tensor | None = None
    is_map = False
    with torch.no_grad():
        for view, images in enumerate(views):
            for start in range(0, len(images), batch_size):
                output = prefix(images[start : start + batch_size].to(device))
                is_map = output.dim() >= 4
                if is_map:
                    output = output.movedim(-3, -1)
                if kept is None:
                    shape = (len(views), len(images), *output.shape[1:])
                    kept = _room(shape, output.dtype, memory, device)
                kept[view, start : start + batch_size] = output
    if kept is None:
        raise ValueError("no images")
    return kept.movedim(-1, -3) if is_map else kept


def run_anew(
    prefix: nn.Module,
    views: Sequence[Tensor],
    share: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Callable[[Tensor, Tensor], Tensor]:
    """The prefix's outputs of images whose brightness is another each time (`brightened`).

    Args:
        prefix: frozen.
        views: V tensors (N, 3, H, W) uint8 of the same images.
        share: by how much images become brighter or darker.
        generator: of the brightness.
        device: where the prefix is.

    Returns:
        From the numbers of views (B,) and indices of images (B,) to (B, ...) on the device.
    """

    def outputs(view: Tensor, batch: Tensor) -> Tensor:
        pairs = zip(view.tolist(), batch.tolist(), strict=True)
        images = torch.stack([views[number][index] for number, index in pairs])
        with torch.no_grad():
            output: Tensor = prefix(brightened(images, share, generator).to(device))
        return output

    return outputs


def _room(
    shape: tuple[int, ...], dtype: torch.dtype, memory: int, device: torch.device | str
) -> Tensor:
    count = prod(shape)
    if count * dtype.itemsize <= memory:
        return torch.empty(shape, dtype=dtype, device=device)
    # The mapping keeps the file's blocks alive; its name is gone at once.
    with tempfile.NamedTemporaryFile(prefix="dynammo-") as file:
        try:  # a full disk would otherwise kill the process when the tensor is written
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            else:
                file.truncate(count * dtype.itemsize)
        except OSError as error:
            raise DynammoError(
                f"no room for {count * dtype.itemsize / 1e9:.1f} GB in {tempfile.gettempdir()} "
                f"({error.strerror}): raise train.cache_mb, or set TMPDIR to a folder with room"
            ) from None
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


class _Tracer(fx.Tracer):
    """Goes into the modules that hold a unit; all others are leaves."""

    def __init__(self, units: Sequence[str]) -> None:
        super().__init__()
        names = [f"backbone.{unit}" for unit in units]
        self.opened = {n[:i] for n in names for i, c in enumerate(n) if c == "."}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened


def _before(network: Network, graph: fx.Graph, cut: fx.Node) -> nn.Module:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node is cut:
            break
        copies[node] = part.node_copy(node, lambda n: copies[n])
    part.output(copies[cut.all_input_nodes[0]])
    return as_module(network, part)


def _after(network: Network, graph: fx.Graph, cut: fx.Node) -> nn.Module:
    """Raises `KeyError` where a later node takes something from before the cut."""
    part = fx.Graph()
    (source,) = cut.all_input_nodes
    copies = {source: part.placeholder("x")}
    started = False
    for node in graph.nodes:
        started = started or node is cut
        if started:
            copies[node] = part.node_copy(node, lambda n: copies[n])
    return as_module(network, part)
