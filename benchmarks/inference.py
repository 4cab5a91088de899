"""Cost of classifying one image against the number of tasks: unmerged, merged, folded, bare.

All are timed in turns in one process, so that what else the machine does hits them alike; the
medians are compared with the bare backbone's.

    python benchmarks/inference.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from tqdm import tqdm

from dynammo.backbones import pretrained_weights
from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.efficiency import count_macs
from dynammo.folding import fold_adapters
from dynammo.network import Network, build_network, build_unmerged_network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128, help="side of the image in pixels")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 5, 10, 20, 50])
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    networks = build(arguments.backbone, arguments.size, arguments.tasks)
    image = torch.randint(0, 256, (1, 3, arguments.size, arguments.size), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for _ in tqdm(range(arguments.repeats + 3), desc="rounds"):
            for name, network in networks.items():
                began = time.perf_counter()
                network(image)
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[3:]) for name, times in seconds.items()}
    print(f"{arguments.backbone} at {arguments.size} px, torch {torch.__version__}")
    print("| network | GMACs | ms, median | ratio to bare |\n|---|---:|---:|---:|")
    for name, network in networks.items():
        gmacs = count_macs(network, arguments.size) / 1e9
        ratio = medians[name] / medians["bare backbone"]
        print(f"| {name} | {gmacs:.4f} | {1000 * medians[name]:.1f} | {ratio:.2f} |")


def build(backbone: str, size: int, tasks: list[int]) -> dict[str, nn.Module]:
    """The networks to compare; their answers mean nothing."""
    config = BackboneConfig(name=backbone, pretrained=False)
    weights = pretrained_weights(config, seed=0)
    paper, linear = AdapterConfig(name="conv"), AdapterConfig(name="linear")

    def merged(adapter: AdapterConfig) -> Network:
        return build_network(config, weights, size, adapter)

    networks: dict[str, nn.Module] = {
        "bare backbone": build_network(config, weights, size),
        "merged, linear, folded": build_network(config, fold_adapters(merged(linear)), size),
        "merged, linear": merged(linear),
        "merged, paper's": merged(paper),
    }
    state = merged(paper).adapter_state()
    for count in tasks:
        networks[f"unmerged, paper's, {count} tasks"] = build_unmerged_network(
            config, weights, size, paper, [state] * count
        )
    return networks


if __name__ == "__main__":
    main()
