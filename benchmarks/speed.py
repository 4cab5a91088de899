"""How fast training is, against the same work done plainly; and that it does not slow down or grow
with the number of tasks.

1  balanced fine-tuning: the network run once on the memory, against in every epoch
2  training an adapter: layout, frozen layers once, frozen BatchNorms; bf16, torch.compile
3  a whole run on picture files, against plain.py: the published procedure with nothing kept
4  a prediction against the number of tasks: benchmarks/inference.py
5  peak memory against the number of tasks, and against the number of images (Linux only)
6  seconds a task takes, up to 50 tasks

What is compared is run in turns in one process (5: each in its own), so that what else the machine
does hits all alike, on one thread, where the CPU's time hardly depends on what else wants the
cores: ratios are of the CPU's time, medians.

    python benchmarks/speed.py
    python benchmarks/speed.py --only 1 3 --repeats 5
    python benchmarks/speed.py --quick
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import inference
import numpy as np
import plain
import psutil
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dynammo.config import AdapterConfig, BackboneConfig, Config, HeadConfig, TrainConfig
from dynammo.data.formats.pictures import load_image
from dynammo.data.samples import ImageSet
from dynammo.data.sources.digits import load as load_digits
from dynammo.data.sources.loading import load_source
from dynammo.data.store import ImageStore, build_store
from dynammo.heads.discriminant import discriminant_head
from dynammo.heads.drift import measure_drift
from dynammo.heads.linear import (
    State,
    fine_tune_head,
    least_others_scores,
    new_head,
    task_labels,
    unified_scores,
)
from dynammo.heads.statistics import ClassStatistics, append_classes, measure_classes
from dynammo.memory.herding import herd, quota
from dynammo.merging.average import average
from dynammo.network.backbones import pretrained_weights
from dynammo.network.cost import count_macs
from dynammo.network.features import augmented_views, extract_features
from dynammo.network.frozen_norms import without_frozen_norms
from dynammo.network.network import Network, build_network
from dynammo.seeds import derive_seed
from dynammo.training.frozen_prefix import split_at_first_adapter
from dynammo.training.loop import train_adapter

SECTIONS = {
    1: "balanced fine-tuning",
    2: "training an adapter",
    3: "a whole run",
    4: "a prediction",
    5: "peak memory",
    6: "seconds a task",
}


class Spent(NamedTuple):
    """Seconds by the clock and of the CPU."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=int, nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="a few images: does it run at all?")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3 and 6: one)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--random", action="store_true", help="no pretrained weights")
    parser.add_argument(
        "--adapter", choices=["linear", "conv"], default="linear", help="1, 2, 5, 6"
    )
    parser.add_argument("--size", type=int, default=128, help="side in pixels; 6: three quarters")
    parser.add_argument("--images", type=int, default=64, help="1: remembered; 2: of the task")
    parser.add_argument("--epochs", type=int, default=8, help="2, 3: of adapter training")
    parser.add_argument("--head-epochs", type=int, default=100, help="1, 3: of fine-tuning")
    parser.add_argument("--compile", action="store_true", help="2: torch.compile, too (minutes)")
    parser.add_argument("--data", type=Path, help="3: folder train/<class>, test/<class>")
    parser.add_argument("--per-class", type=int, default=24, help="3: training images a class")
    parser.add_argument("--memory", type=int, default=40, help="3: remembered images in all")
    parser.add_argument("--unmerged", action="store_true", help="3: learn unmerged beside merged")
    parser.add_argument("--tasks", type=int, default=50, help="5, 6: at most")
    parser.add_argument("--json", type=Path, help="write the numbers into this file, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.images, arguments.epochs, arguments.repeats = 96, 8, 2, 1
        arguments.head_epochs, arguments.per_class, arguments.tasks = 3, 4, 3
        arguments.memory = 20
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(child(arguments, **json.loads(arguments.child))))
        return
    load = "load {:.1f} {:.1f} {:.1f}".format(*psutil.getloadavg())
    print(f"{arguments.backbone}, torch {torch.__version__}, {psutil.cpu_count()} cores, {load}")
    results = {}
    for section in arguments.only:
        print(f"\n{section}  {SECTIONS[section]}\n", flush=True)
        results[SECTIONS[section]] = globals()[f"section_{section}"](arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def timed(run: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Spent]:
    """Medians of each, taken in turns."""
    spent: dict[str, list[Spent]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc="rounds"):
        for name, run in runs.items():
            spent[name].append(timed(run))
    return {
        name: Spent(*map(statistics.median, zip(*each, strict=True)))
        for name, each in spent.items()
    }


def compare(medians: Mapping[str, Spent]) -> dict[str, Any]:
    """Print a table; the first row is what the others are held against."""
    first = next(iter(medians.values()))
    print("| | CPU s | times as fast | clock s | times as fast |\n|---|---:|---:|---:|---:|")
    for name, own in medians.items():
        cpu = f"{own.cpu:.2f} | {first.cpu / own.cpu:.2f}"
        print(f"| {name} | {cpu} | {own.wall:.2f} | {first.wall / own.wall:.2f} |", flush=True)
    return {
        name: {**own._asdict(), "times_as_fast": first.cpu / own.cpu}
        for name, own in medians.items()
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[dict[str, object]]:
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        print(f"| {' | '.join(cells)} |", flush=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def backbone(arguments: argparse.Namespace) -> tuple[BackboneConfig, State]:
    config = BackboneConfig(name=arguments.backbone, pretrained=not arguments.random)
    return config, pretrained_weights(config, seed=0)


def noise(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


# 1 ----------------------------------------------------------------------------------------------


def section_1(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stage 2 with and without keeping the features; the heads must be the same."""
    config, weights = backbone(arguments)
    network = build_network(config, weights, arguments.size, AdapterConfig(name=arguments.adapter))
    images = noise(arguments.images, arguments.size)
    labels = torch.arange(arguments.images) % 8
    initial = new_head(network.feature_size, 8, seed=0)
    head = HeadConfig(epochs=arguments.head_epochs)
    made: dict[str, State] = {}

    def every_epoch() -> None:
        # The library's own training, given features that are computed when they are asked for.
        made["every"] = fine_tune_head(_Forwarding(network, images), labels, initial, head, 0)  # type: ignore[arg-type]

    def once() -> None:
        features = augmented_views(network, images, head.flip)
        made["once"] = fine_tune_head(features, labels, initial, head, 0)

    result = compare(in_turns({"every epoch": every_epoch, "once": once}, arguments.repeats))
    difference = max(float((made["every"][k] - made["once"][k]).abs().max()) for k in initial)
    largest = float(made["once"]["weight"].abs().max())
    print(f"\nthe heads differ by {difference:.1g} at most, the largest weight is {largest:.2g}")
    return {**result, "difference": difference}


class _Forwarding:
    """Looks like features (V, N, D); runs the network on whatever is indexed."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network, self.views = network, torch.stack([images, images.flip(-1)])
        self.shape = (2, len(images), 0)

    @torch.no_grad()
    def __getitem__(self, key: tuple[Tensor, Tensor]) -> Tensor:
        features: Tensor = self.network(self.views[key])
        return features


# 2 ----------------------------------------------------------------------------------------------


def section_2(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stage 1, one improvement after another, then what was tried beside them."""
    config, weights = backbone(arguments)
    images = noise(arguments.images, arguments.size)
    labels = torch.arange(arguments.images) % 3
    adapter = AdapterConfig(name=arguments.adapter)

    def learn(*changes: Any, precision: str = "float32") -> Callable[[], None]:
        train = TrainConfig(epochs=arguments.epochs, precision=precision)

        def run() -> None:
            network = build_network(config, weights, arguments.size, adapter)
            with ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change())
                train_adapter(network, images, labels, 2, train, seed=0)

        return run

    rows = {
        "plain": learn(_no_split, _norms_stay, _torch_layout),
        "+ channels last": learn(_no_split, _norms_stay),
        "+ frozen layers once": learn(_norms_stay),
        "+ frozen BatchNorms in the convolutions: as it is": learn(),
        "as it is, with train.precision bfloat16": learn(precision="bfloat16"),
    }
    learn()()  # oneDNN prepares its kernels
    result = compare(in_turns(rows, arguments.repeats))
    print()
    if not arguments.compile:
        return result
    return {**result, "steps": _steps(arguments, config, weights, adapter, images)}


def _no_split() -> Any:
    return patch("dynammo.training.loop.split_at_first_adapter", lambda net: (nn.Identity(), net))


def _norms_stay() -> Any:
    return patch("dynammo.training.loop.without_frozen_norms", lambda net: net)


@contextmanager
def _torch_layout() -> Iterator[None]:
    with patch(
        "dynammo.training.loop.split_at_first_adapter", lambda n: (nn.Identity(), plain.Whole(n))
    ):
        yield


def _steps(
    arguments: argparse.Namespace,
    config: BackboneConfig,
    weights: State,
    adapter: AdapterConfig,
    images: Tensor,
) -> dict[str, Any]:
    """One step, forwards and backwards, as it is and compiled; compiling is timed apart."""
    network = build_network(config, weights, arguments.size, adapter)
    prefix, suffix = split_at_first_adapter(without_frozen_norms(network))
    batch = images[:32]
    with torch.no_grad():
        inputs = prefix(batch).contiguous(memory_format=torch.channels_last)
    network.train()

    def step(part: Callable[[Tensor], Tensor]) -> None:
        network.zero_grad()
        part(inputs).square().mean().backward()

    compiled = torch.compile(suffix)
    compiling = timed(lambda: step(compiled))
    step(suffix)
    rows = {"eager": lambda: step(suffix), "torch.compile": lambda: step(compiled)}
    print(f"A step of {len(batch)} images; compiling took {compiling.wall:.0f} s\n")
    return {**compare(in_turns(rows, 5 * arguments.repeats)), "compiling": compiling._asdict()}


# 3 ----------------------------------------------------------------------------------------------


def section_3(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same scenario learnt twice: by plain.py and by the library."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data:
            images = load_source("folder", arguments.data)
        else:
            images = load_digits(Path(folder) / "digits")
        order = images.classes
        sizes = [len(order[start : start + 2]) for start in range(0, len(order), 2)]
        chosen = {
            split: [
                sample
                for name in order
                for sample in images.select(split, [name])[: arguments.per_class]
            ]
            for split in ("train", "test")
        }
        subset = ImageSet(images.root, (*chosen["train"], *chosen["test"]))
        print(f"{len(chosen['train'])} training images of {len(order)} classes, 2 a task\n")
        flip = bool(arguments.data)  # a mirrored digit is another sign
        config = Config.model_validate(
            {
                "preset": "paper",
                "backbone": {"name": arguments.backbone, "pretrained": not arguments.random},
                "image": {"size": arguments.size},
                "train": {"epochs": arguments.epochs, "flip": flip},
                "head": {"epochs": arguments.head_epochs, "flip": flip},
                "memory": {"size": arguments.memory},
            }
        )
        weights = pretrained_weights(config.backbone)
        files = {
            split: plain.Files(
                [subset.root / sample.file for sample in subset.select(split, order)],
                torch.tensor([order.index(s.label) for s in subset.select(split, order)]),
                config.image.form,
            )
            for split in ("train", "test")
        }
        answers: dict[str, Any] = {}

        def plainly() -> None:
            answers["plain"] = plain.run(
                config, weights, files["train"], files["test"], sizes, arguments.unmerged
            )

        def ours() -> None:
            with tempfile.TemporaryDirectory() as store:
                path = build_store(subset, config.image.form, Path(store))
                pixels = ImageStore.open(path)
                loaded = {s: pixels.load(subset.select(s, order)) for s in ("train", "test")}
                labels = {split: each.labels for split, each in files.items()}
                answers["library"] = run(config, weights, loaded, labels, sizes, arguments.unmerged)

        result = compare(in_turns({"plain": plainly, "library": ours}, 1))
    print()
    columns = ["accuracy after task", *map(str, range(1, len(sizes) + 1))]
    rows = [
        [f"{method}, {name}", *(stage[method] for stage in stages)]
        for name, stages in answers.items()
        for method in stages[0]
    ]
    return {**result, "accuracy": table(columns, rows)}


def run(
    config: Config,
    weights: State,
    images: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    sizes: Sequence[int],
    unmerged: bool,
) -> list[dict[str, float]]:
    """`plain.run` as the pipeline does it."""

    def network(state: State | None, seed: int = 0) -> Network:
        built = build_network(config.backbone, weights, config.image.form, config.adapter, seed)
        if state is not None:
            built.load_adapter_state(state)
        return built

    def accuracy(predicted: Tensor, known: int) -> float:
        tested = labels["test"] < known
        return float((predicted[tested] == labels["test"][tested]).double().mean())

    train, owner = images["train"], labels["train"]
    adapters: list[State] = []
    heads: list[State] = []
    tests: list[Tensor] = []
    kept: list[list[int]] = []
    results = []
    seen = 0
    for number, size in enumerate(sizes, start=1):
        new = ((owner >= seen) & (owner < seen + size)).nonzero().flatten()
        others = torch.tensor([row for rows in kept for row in rows], dtype=torch.long)
        targets = torch.cat([owner[new] - seen, torch.full((len(others),), size)])
        net = network(adapters[-1] if adapters else None, derive_seed(config.seed, "a", number))
        trained = train_adapter(
            net,
            train[torch.cat([new, others])],
            targets,
            size,
            config.train,
            derive_seed(1, "t", number),
        )
        adapters.append(trained.adapter)
        heads.append(trained.head)
        seen += size

        merged = network(average(adapters))
        count = quota(config.memory, seen)
        features = extract_features(merged, train[new])
        for label in range(seen - size, seen):
            mine = (owner[new] == label).nonzero().flatten()
            kept.append(new[mine[herd(features[mine], count)]].tolist())
        kept = [rows[:count] for rows in kept]
        memory = torch.tensor([row for rows in kept for row in rows])
        known = owner[memory]

        initial = new_head(net.feature_size, seen, derive_seed(config.seed, "h", number))
        views = augmented_views(merged, train[memory], config.head.flip)
        seed = derive_seed(config.seed, "f", number)
        one = fine_tune_head(views, known, initial, config.head, seed)
        scores = unified_scores(extract_features(merged, images["test"]), one)
        result = {"merged": accuracy(scores.predicted, seen)}
        if unmerged:
            tests.append(extract_features(network(adapters[-1]), images["test"]))
            if number > 1:
                first = 0
                for k, own in enumerate(sizes[:number]):
                    views = augmented_views(network(adapters[k]), train[memory], config.head.flip)
                    seed = derive_seed(config.seed, "u", k, number)
                    told = task_labels(known, first, own)
                    heads[k] = fine_tune_head(views, told, heads[k], config.head, seed)
                    first += own
            scores = least_others_scores(tests, heads)
            result["unmerged"] = accuracy(scores.predicted, seen)
        results.append(result)
    return results


# 4 ----------------------------------------------------------------------------------------------


def section_4(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of `benchmarks/inference.py`."""
    tasks = sorted({n for n in (1, 5, 10, 20, 50) if n <= arguments.tasks})
    networks = inference.build(arguments.backbone, arguments.size, tasks)
    image = noise(1, arguments.size)
    repeats = 3 * arguments.repeats
    medians = inference.measure({k: lambda n=n: n(image) for k, n in networks.items()}, repeats)
    _, bare = medians["bare backbone"]
    rows = [
        [name, count_macs(net, arguments.size) / 1e9, 1000 * cpu, cpu / bare]
        for (name, net), (_, cpu) in zip(networks.items(), medians.values(), strict=True)
    ]
    return table(["network", "GMACs", "CPU ms", "ratio to bare"], rows)


# 5 ----------------------------------------------------------------------------------------------


def section_5(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Peak memory of processes that differ in one thing."""
    few, many = (8, 32) if arguments.quick else (128, 1024)
    jobs: dict[str, dict[str, Any]] = {"imports alone": {"what": "nothing"}}
    for tasks in sorted({1, min(10, arguments.tasks), arguments.tasks}):
        jobs[f"{tasks} tasks"] = {"what": "tasks", "tasks": tasks}
    for images in (few, many):
        for cache in (0, 16, 2000):
            name = f"one task of {images} images, cache_mb {cache}"
            jobs[name] = {"what": "images", "images": images, "cache_mb": cache}
    own = ["--backbone", arguments.backbone, "--adapter", arguments.adapter]
    own += ["--size", str(arguments.size), "--threads", str(arguments.threads)]
    own += ["--random"] if arguments.random else []
    rows = []
    for name, job in tqdm(jobs.items(), desc="processes"):
        command = [sys.executable, __file__, *own, "--child", json.dumps(job)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak = json.loads(done.stdout.splitlines()[-1])
        rows.append([name, *(round(peak[key]) for key in ("resident", "anonymous", "held"))])
    return table(["process", "peak RSS, MB", "of it not backed by files", "held at the end"], rows)


def child(arguments: argparse.Namespace, what: str, **job: Any) -> dict[str, float]:
    """Do one thing in a process of its own; its peak memory in MB.

    Pages of mapped files count as resident while they are in memory, though the system may drop
    them whenever it wants the room; what is not backed by files it must keep. Only the sum of both
    has a peak that the system notes; the other is looked at 50 times a second. What is held at the
    end is what the program has asked the C library (glibc) for and not given back.
    """
    anonymous = [0]
    finished = threading.Event()

    def watch() -> None:
        while True:
            memory = psutil.Process().memory_info()
            anonymous[0] = max(anonymous[0], memory.rss - memory.shared)
            if finished.wait(0.02):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        if what == "tasks":
            list(learn_tasks(arguments, job["tasks"], epochs=1))
        elif what == "images":
            config, weights = backbone(arguments)
            adapter = AdapterConfig(name=arguments.adapter)
            network = build_network(config, weights, arguments.size, adapter)
            labels = torch.arange(job["images"]) % 3
            train = TrainConfig(epochs=1, cache_mb=job["cache_mb"])
            images = noise(job["images"], arguments.size)
            train_adapter(network, images, labels, 2, train, seed=0)
    finally:
        finished.set()
        watcher.join()
    # Not getrusage's ru_maxrss: that begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmHWM:")
    return {"resident": peak / 1024, "anonymous": anonymous[0] / 2**20, "held": held() / 2**20}


class _MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 gives: `held` is what it calls uordblks, `mapped` hblkhd."""

    _fields_ = (
        ("unused", 4 * ctypes.c_size_t),
        ("mapped", ctypes.c_size_t),
        ("unused_too", 2 * ctypes.c_size_t),
        ("held", ctypes.c_size_t),
        ("free", 2 * ctypes.c_size_t),
    )


def held() -> float:
    """Bytes that the program has allocated and not freed, by the count of glibc."""
    count = ctypes.CDLL(None).mallinfo2
    count.restype = _MallInfo
    info = count()
    return float(info.held + info.mapped)


# 6 ----------------------------------------------------------------------------------------------


def section_6(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """The first ten tasks against the last ten."""
    spent = list(tqdm(learn_tasks(arguments, arguments.tasks, epochs=4), total=arguments.tasks))
    share = max(1, min(10, len(spent) // 2))
    rows = []
    for part in spent[0]:
        first, last = (
            statistics.median(task[part].cpu for task in some)
            for some in (spent[:share], spent[-share:])
        )
        rows.append([part, first, last, last / first])
    return table(["CPU s", f"first {share} tasks", f"last {share}", "ratio"], rows)


def learn_tasks(
    arguments: argparse.Namespace, tasks: int, epochs: int
) -> Iterator[dict[str, Spent]]:
    """Tasks of one class each, a digit turned by some angle: 32 images, and 50 remembered in all.

    Adapters and merged ones are kept in files, as the pipeline keeps them. Gives the time of each
    task's parts.
    """
    config, weights = backbone(arguments)
    size = arguments.size * 3 // 4
    kind = AdapterConfig(name=arguments.adapter)
    memory = Config().memory.model_copy(update={"size": max(50, tasks)})
    train = TrainConfig(epochs=epochs)
    angles = -(-tasks // 10)

    def network(state: State | None) -> Network:
        built = build_network(config, weights, size, kind, seed=0)
        if state is not None:
            built.load_adapter_state(state)
        return built

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits = load_digits(folder / "digits")
        statistic: ClassStatistics | None = None
        previous: State | None = None
        kept: list[list[Tensor]] = []

        for number in range(tasks):
            samples = digits.select("train", [str(number % 10)])[:32]
            turned = [
                Image.fromarray(load_image(digits.root / sample.file, size)).rotate(
                    360 * (number // 10) / angles
                )
                for sample in samples
            ]
            pixels = torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2).contiguous()
            others = [image for images in kept for image in images]
            images = torch.cat([pixels, torch.stack(others)]) if others else pixels
            labels = torch.cat([torch.zeros(len(pixels)), torch.ones(len(others))]).long()
            file = folder / f"{number}.safetensors"

            def train_one(
                images: Tensor = images,
                labels: Tensor = labels,
                number: int = number,
                file: Path = file,
            ) -> None:
                before = folder / f"{number - 1}.safetensors"
                net = network(load_file(before) if number else None)
                save_file(train_adapter(net, images, labels, 1, train, number).adapter, file)

            def merge(number: int = number) -> None:
                files = [folder / f"{n}.safetensors" for n in range(number + 1)]
                save_file(average(map(load_file, files)), folder / "merged.safetensors")

            def measure(
                pixels: Tensor = pixels, images: Tensor = images, number: int = number
            ) -> None:
                nonlocal statistic, previous
                merged = load_file(folder / "merged.safetensors")
                net = network(merged)
                after = augmented_views(net, images, flip=True)
                mine = after[:, : len(pixels)]
                new = measure_classes(mine, torch.zeros(len(pixels)).long(), 1)
                if statistic is not None:
                    before = augmented_views(network(previous), images, flip=True)
                    moved = before.flatten(0, 1), after.flatten(0, 1)
                    new = append_classes(measure_drift(*moved, 0.3).statistics(statistic), new)
                statistic, previous = new, merged
                count = quota(memory, number + 1)
                # Copies: a part of a tensor holds all of it.
                kept.append([pixels[i].clone() for i in herd(mine[0], count)])
                kept[:] = [part[:count] for part in kept]

            def head() -> None:
                assert statistic is not None
                discriminant_head(statistic, HeadConfig(shrinkage=0.85))

            parts = {
                "train the adapter": timed(train_one),
                "merge": timed(merge),
                "statistics, exemplars": timed(measure),
                "head": timed(head),
            }
            whole = Spent(*map(sum, zip(*parts.values(), strict=True)))
            yield {**parts, "the task": whole}


if __name__ == "__main__":
    main()
