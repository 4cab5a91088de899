"""Cost of classifying one image against the number of tasks: unmerged, merged, folded, bare; and
of the forms that `dynammo export-model` writes.

All are timed in turns in one process, so that what else the machine does hits them alike; the
medians are compared with the bare backbone's.

    python benchmarks/inference.py
    python benchmarks/inference.py --exports --size 224
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import onnxruntime
import torch
from torch import nn
from tqdm import tqdm

from dynammo.config import AdapterConfig, BackboneConfig, load_config
from dynammo.deploy.export import export_model
from dynammo.deploy.predictor import Classifier, save_model
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.cost import count_macs
from dynammo.network.folding import cheapen, fold_adapters
from dynammo.network.network import Network, build_network, build_unmerged_network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128, help="side of the image in pixels")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 5, 10, 20, 50])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--exports", action="store_true", help="compare the forms of one model")
    parser.add_argument("--threads", type=int, default=1, help="with --exports")
    arguments = parser.parse_args()
    print(f"{arguments.backbone} at {arguments.size} px, torch {torch.__version__}")
    if arguments.exports:
        # Not switched during a run: oneDNN prepares its kernels anew for another number.
        torch.set_num_threads(arguments.threads)
        with tempfile.TemporaryDirectory() as folder:
            forms = build_exports(
                arguments.backbone, arguments.size, arguments.threads, Path(folder)
            )
        # ONNX Runtime's threads go on spinning for a moment: they must not slow down the next.
        medians = measure(forms, arguments.repeats, pause=0.02)
        print("| program | ms | ratio | CPU ms | ratio |\n|---|---:|---:|---:|---:|")
        first = next(iter(medians.values()))
        for name, pair in medians.items():
            cells = [
                f"{1000 * own:.1f} | {own / of:.2f}" for own, of in zip(pair, first, strict=True)
            ]
            print(f"| {name} | {' | '.join(cells)} |")
        return
    image = torch.randint(0, 256, (1, 3, arguments.size, arguments.size), dtype=torch.uint8)
    networks = build(arguments.backbone, arguments.size, arguments.tasks)
    medians = measure(
        {name: lambda n=network: n(image) for name, network in networks.items()},
        arguments.repeats,
    )
    print("| network | GMACs | ms, median | ratio to bare |\n|---|---:|---:|---:|")
    for name, network in networks.items():
        gmacs = count_macs(network, arguments.size) / 1e9
        wall, bare = medians[name][0], medians["bare backbone"][0]
        print(f"| {name} | {gmacs:.4f} | {1000 * wall:.1f} | {wall / bare:.2f} |")


@torch.inference_mode()
def measure(
    runs: Mapping[str, Callable[[], object]], repeats: int, pause: float = 0.0
) -> dict[str, tuple[float, float]]:
    """Median seconds of each, by the clock and of the CPU, taken in turns after three rounds.

    With one thread the CPU's time does not depend on what else wants the cores.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats + 3), desc="rounds"):
        for name, run in runs.items():
            time.sleep(pause)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            seconds[name].append(spent)
    medians = {}
    for name, times in seconds.items():
        walls, cpus = zip(*times[3:], strict=True)
        medians[name] = statistics.median(walls), statistics.median(cpus)
    return medians


def build_exports(
    backbone: str, size: int, threads: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """One image through the same backbone and a head, in several forms."""
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    config = BackboneConfig(name=backbone, pretrained=False)
    weights = pretrained_weights(config, seed=0)
    runs: dict[str, Callable[[], object]] = {}

    def add(name: str, model: nn.Module) -> None:
        runs[name] = lambda: model(image)

    for kind in ("linear", "conv"):
        adapter = AdapterConfig(name=kind)
        network = build_network(config, weights, size, adapter)
        head = new_head(network.feature_size, 8, seed=0)
        save_model(
            folder / kind,
            backbone=config,
            form=size,
            adapter=adapter,
            backbone_weights=weights,
            adapter_weights=network.adapter_state(),
            head=head,
            classes=[str(index) for index in range(8)],
            provenance={},
        )
        export_model(folder / kind, folder / f"{kind}-exported")
        program = torch.export.load(folder / f"{kind}-exported" / "model.pt2").module()
        label = "linear adapters" if kind == "linear" else "the paper's adapter"
        content = (folder / f"{kind}-exported" / "model.onnx").read_bytes()
        if kind == "linear":
            bare = build_network(config, weights, size)
            folded = build_network(config, fold_adapters(network).weights, size)
            add("torch, bare backbone", Classifier(bare, head))
            add("torch, linear adapters, folded", Classifier(folded, head))
        else:
            add(f"torch, {label}", Classifier(network, head))
            add(f"torch, {label} without BatchNorms", Classifier(cheapen(network), head))
        add(f"torch, model.pt2 (no BatchNorms), {label}", program)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs = {"images": image.numpy()}
        runs[f"ONNX Runtime, {label}"] = lambda s=session, i=inputs: s.run(None, i)
    return runs


def build(backbone: str, size: int, tasks: list[int]) -> dict[str, nn.Module]:
    """The networks to compare; their answers mean nothing."""
    config = BackboneConfig(name=backbone, pretrained=False)
    weights = pretrained_weights(config, seed=0)
    paper, linear = AdapterConfig(name="conv"), AdapterConfig(name="linear")

    default = config.model_copy(update={"levels": load_config().backbone.levels})

    def merged(adapter: AdapterConfig) -> Network:
        return build_network(config, weights, size, adapter)

    def folded(kind: BackboneConfig) -> Network:
        adapted = build_network(kind, weights, size, linear)
        return build_network(kind, fold_adapters(adapted).weights, size)

    networks: dict[str, nn.Module] = {
        "bare backbone": build_network(config, weights, size),
        f"merged, linear, folded, {default.levels} levels (the default)": folded(default),
        "merged, linear, folded": folded(config),
        "merged, linear": merged(linear),
        "merged, the paper's adapter": merged(paper),
    }
    state = merged(paper).adapter_state()
    for count in tasks:
        number = "1 task" if count == 1 else f"{count} tasks"
        networks[f"unmerged, the paper's adapters, {number}"] = build_unmerged_network(
            config, weights, size, paper, [state] * count
        )
    return networks


if __name__ == "__main__":
    main()
