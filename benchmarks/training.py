"""Time of one task's adapter training: frozen layers run once, against in every epoch.

Both are timed in turns in one process; the ratio of the medians is what counts. For the effect of
OpenMP's waiting, run it with OMP_WAIT_POLICY=ACTIVE and PASSIVE while something else is busy.

    python benchmarks/training.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest.mock import patch

import torch
from torch import nn

from dynammo.config import AdapterConfig, BackboneConfig, TrainConfig
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network
from dynammo.training.loop import train_adapter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--adapter", default="linear")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    config = BackboneConfig(name=arguments.backbone, pretrained=False)
    weights = pretrained_weights(config, seed=0)
    shape = (arguments.images, 3, arguments.size, arguments.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.arange(arguments.images) % 3

    def run() -> float:
        adapter = AdapterConfig(name=arguments.adapter)
        network = build_network(config, weights, arguments.size, adapter)
        began = time.perf_counter()
        train_adapter(network, images, labels, 2, TrainConfig(epochs=arguments.epochs), seed=0)
        return time.perf_counter() - began

    once, every = [], []
    for _ in range(arguments.repeats):
        once.append(run())
        with patch("dynammo.training.loop.split_at_first_adapter", lambda n: (nn.Identity(), n)):
            every.append(run())
        print(f"once {once[-1]:.1f} s, every epoch {every[-1]:.1f} s", flush=True)
    ratio = statistics.median(every) / statistics.median(once)
    print(f"{arguments}: {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
