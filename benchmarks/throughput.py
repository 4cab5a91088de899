"""Images a second: training an adapter, against the bare backbone trained whole and against what
the device could do at best.

The floor of a row is the longer of two times: its multiply-accumulates at the rate of a large
matrix product or convolution, whichever is faster, and the bytes that its operations read and write
at the rate of a large copy. Both rates are measured in the same run, both numbers counted on a real
step. What stays in a cache between two operations is counted as read and written, so a row can be
faster than the floor of its bytes.

All rows are run in turns; medians. On a CPU it is the CPU's time on one thread, which hardly
depends on what else wants the cores, else the clock's.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --device cuda --batch 128 --images 1024 --repeats 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speed import Spent, in_turns, noise, timed
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dynammo.config import AdapterConfig, BackboneConfig, TrainConfig
from dynammo.network.backbones import pretrained_weights
from dynammo.network.frozen_norms import without_frozen_norms
from dynammo.network.network import build_network
from dynammo.training.frozen_prefix import split_at_first_adapter
from dynammo.training.loop import train_adapter

Run = Callable[[], object]


class Row(NamedTuple):
    """What is timed, and on how many images; counted on a run of it that may be shorter."""

    run: Run
    images: int
    counted: Run
    counted_images: int


class Work(NamedTuple):
    """Of one image: multiply-accumulates, and bytes read and written."""

    macs: float
    bytes: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--adapter", choices=["linear", "conv"], default="linear")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--images", type=int, default=64, help="of the task")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path, help="write the numbers into this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    macs_a_second, bytes_a_second = peak(device, arguments.precision)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(
        f"{arguments.backbone}, {arguments.size} px, {arguments.precision}, torch "
        f"{torch.__version__} on {name}: {macs_a_second / 1e9:.1f} GMAC/s at best, "
        f"{bytes_a_second / 1e9:.1f} GB/s in a copy\n"
    )
    rows = build(arguments, device)
    runs = {label: finished(row.run, device) for label, row in rows.items()}
    for run in runs.values():  # kernels are prepared
        run()
    medians = in_turns(runs, arguments.repeats)
    rates = {label: row.images / seconds(medians[label], device) for label, row in rows.items()}
    whole = rates["bare backbone, forward and backward"]
    results: dict[str, Any] = {"macs_a_second": macs_a_second, "bytes_a_second": bytes_a_second}
    print("| | images/s | GMACs an image | MB an image | floor, images/s | of the floor | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for label, row in rows.items():
        work = count(row)
        floor = 1 / max(work.macs / macs_a_second, work.bytes / bytes_a_second)
        print(
            f"| {label} | {rates[label]:.1f} | {work.macs / 1e9:.2f} | {work.bytes / 1e6:.0f} "
            f"| {floor:.1f} | {rates[label] / floor:.2f} | {rates[label] / whole:.2f} |",
            flush=True,
        )
        results[label] = {"images_a_second": rates[label], **work._asdict(), "floor": floor}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def build(arguments: argparse.Namespace, device: torch.device) -> dict[str, Row]:
    """The same images through the bare backbone and through adapter training."""
    config = BackboneConfig(name=arguments.backbone, pretrained=False)
    weights = pretrained_weights(config, seed=0)
    adapter = AdapterConfig(name=arguments.adapter)
    images = noise(arguments.images, arguments.size)
    labels = torch.arange(len(images)) % 3
    batch = images[: arguments.batch].to(device)
    rounded = torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16")

    bare = build_network(config, weights, arguments.size).to(device)

    def forward() -> None:
        with torch.no_grad(), rounded:
            bare(batch)

    trained = build_network(config, weights, arguments.size).to(device).requires_grad_()

    def forward_and_backward() -> None:
        trained.zero_grad()
        with rounded:
            loss = trained(batch).float().square().mean()
        loss.backward()

    adapted = build_network(config, weights, arguments.size, adapter).to(device)
    prefix, suffix = split_at_first_adapter(without_frozen_norms(adapted))
    with torch.no_grad(), rounded:
        inputs = prefix(batch)
    adapted.train()

    def step() -> None:
        adapted.zero_grad()
        with rounded:
            loss = suffix(inputs).float().square().mean()
        loss.backward()

    train = TrainConfig(
        epochs=arguments.epochs, batch_size=arguments.batch, precision=arguments.precision
    )

    def learn(images: Tensor, labels: Tensor, train: TrainConfig) -> None:
        network = build_network(config, weights, arguments.size, adapter).to(device)
        train_adapter(network, images, labels, 2, train, seed=0)

    few = min(len(images), arguments.batch)
    return {
        "bare backbone, forward": Row(forward, len(batch), forward, len(batch)),
        "bare backbone, forward and backward": Row(
            forward_and_backward, len(batch), forward_and_backward, len(batch)
        ),
        "a step of adapter training": Row(step, len(batch), step, len(batch)),
        f"adapter training, {arguments.epochs} epochs": Row(
            lambda: learn(images, labels, train),
            len(images) * arguments.epochs,
            lambda: learn(images[:few], labels[:few], train),
            few * arguments.epochs,
        ),
    }


def peak(device: torch.device, precision: str) -> tuple[float, float]:
    """Multiply-accumulates a second at best, bytes a second of a copy."""
    side, batch = (2048, 8) if device.type == "cpu" else (8192, 128)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = torch.randn(2, side, side, device=device).to(kind).unbind()
    layout = torch.channels_last
    maps = torch.randn(batch, 256, 56, 56, device=device).to(kind, memory_format=layout)
    kernel = torch.randn(256, 256, 3, 3, device=device).to(kind, memory_format=layout)
    source = torch.zeros(2**26, device=device)  # 256 MB: more than any cache
    target = torch.empty_like(source)

    def best(run: Run) -> float:
        whole = finished(run, device)
        whole()
        return min(seconds(timed(whole), device) for _ in range(10))

    product = best(lambda: left @ right)
    convolution = best(lambda: functional.conv2d(maps, kernel, padding=1))
    macs_a_second = max(side**3 / product, maps.numel() * 9 * 256 / convolution)
    return macs_a_second, 2 * source.nbytes / best(lambda: target.copy_(source))


def finished(run: Run, device: torch.device) -> Run:
    """The run until its end on the device, which works on while Python goes ahead."""
    if device.type == "cpu":
        return run

    def whole() -> None:
        run()
        torch.accelerator.synchronize(device)

    return whole


def seconds(spent: Spent, device: torch.device) -> float:
    """Of the CPU, or by the clock where another device works."""
    return spent.cpu if device.type == "cpu" else spent.wall


def count(row: Row) -> Work:
    """What one image takes."""
    counter, traffic = FlopCounterMode(display=False), _Traffic()
    with counter, traffic:
        row.counted()
    images = row.counted_images
    return Work(counter.get_total_flops() / 2 / images, traffic.bytes / images)


class _Traffic(TorchDispatchMode):
    """Bytes of the tensors that operations take and give; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


if __name__ == "__main__":
    main()
