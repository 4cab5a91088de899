r"""What the head of the merged model is made of, and what each part of it is worth.

Trains a scenario's adapters once a seed, takes the features of all images under every network that
the rows need, and then fits many heads on them: rows differ in nothing else. Choose on a validation
split (benchmarks/validation_split.py), never on test images.

    python benchmarks/validation_split.py data/skin8/manifest.csv
    python benchmarks/ablation.py --set data.name=skin8 --set data.source=csv \
        --set data.path=data/skin8/validation.csv --seeds 1 50 42 --rules ties fisher

Every row is the mean class recall in %: average over the stages / after the last task.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from tqdm import tqdm

from dynammo.config import Config, HeadConfig, load_config, parse_overrides
from dynammo.data import DATA_SOURCES
from dynammo.data.scenario import build_scenario
from dynammo.data.store import ImageStore, build_store
from dynammo.errors import ConfigError, DynammoError
from dynammo.heads.base import Evidence
from dynammo.heads.discriminant import calibration_temperature, discriminant_head
from dynammo.heads.drift import measure_drift
from dynammo.heads.fine_tune import FineTune
from dynammo.heads.linear import (
    fine_tune_head,
    least_others_scores,
    new_head,
    task_labels,
    unified_scores,
)
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, Pooling, append_classes, measure_classes
from dynammo.memory.herding import herd, quota
from dynammo.merging import MERGE_RULES
from dynammo.merging.average import average
from dynammo.merging.inputs import inputs_of
from dynammo.merging.measures import STATISTICS
from dynammo.network.backbones import pretrained_weights
from dynammo.network.batch_norm import renormalise
from dynammo.network.features import augmented_views, extract_features
from dynammo.network.network import Network, build_network
from dynammo.seeds import derive_seed
from dynammo.state import State
from dynammo.training.loop import train_adapter


@dataclass
class Features:
    """Of all images under one network: (V, N, D) of the training, (N, D) of the test images."""

    train: Tensor
    test: Tensor


@dataclass
class Learnt:
    """A scenario, learnt: what the rows are computed from. Class indices in order of arrival."""

    seed: int
    head: HeadConfig
    sizes: list[int]
    labels: Tensor
    targets: Tensor
    frozen: Features
    alone: list[Features] = field(default_factory=list)
    merged: list[Features] = field(default_factory=list)
    task_heads: list[State] = field(default_factory=list)
    exemplars: list[Tensor] = field(default_factory=list)  # indices, after each task
    by_rule: dict[str, list[Features]] = field(default_factory=dict)  # merged by other rules

    def normalised(self, power: float | None) -> Learnt:
        """The same with power-normalised features for the heads of one network; none: as it is."""
        if power is None:
            return self

        def of(features: Features) -> Features:
            return Features(*(power_normalise(f, power) for f in (features.train, features.test)))

        merged, alone = ([of(f) for f in some] for some in (self.merged, self.alone))
        return replace(self, frozen=of(self.frozen), merged=merged, alone=alone)

    def seen(self, stage: int) -> int:
        """Number of classes after a task."""
        return sum(self.sizes[: stage + 1])

    def new(self, stage: int) -> Tensor:
        """Indices of the training images that arrive with a task."""
        first, last = self.seen(stage) - self.sizes[stage], self.seen(stage)
        return ((self.labels >= first) & (self.labels < last)).nonzero().flatten()


def learn(config: Config, store: Path, rules: Sequence[str] = ()) -> Learnt:
    """Train and average the adapters of all tasks, as the pipeline does; merge by `rules`, too.

    Exemplars are chosen by the average.
    """
    if config.adapter.tasks is not None or config.memory.per_class == 0:
        raise ConfigError(["every row needs an adapter for every task, and exemplars"])
    if config.merge.rule != "average" or not config.head.flip:
        raise ConfigError(["rows merge by average (--rules adds others) and use mirrored views"])
    images = DATA_SOURCES[config.data.source](Path(config.data.path))
    scenario = build_scenario(images, config.scenario, config.memory, config.seed)
    pixels = ImageStore.open(build_store(images, config.image.form, store))
    order = [name for task in scenario for name in task.classes]

    def split(name: str) -> tuple[Tensor, Tensor]:
        samples = images.select(name, order)
        return pixels.load(samples), torch.tensor([order.index(s.label) for s in samples])

    train, labels = split("train")
    test, targets = split("test")
    weights = pretrained_weights(config.backbone, derive_seed(config.seed, "backbone"))
    sizes = [len(task.classes) for task in scenario]
    if config.backbone.renormalise:
        bare = build_network(config.backbone, weights, config.image.form)
        seed = derive_seed(config.seed, "renormalise")
        weights = renormalise(bare, train[labels < sizes[0]], config.backbone.renormalise, seed)

    def network(state: State | None, seed: int = 0) -> Network:
        net = build_network(config.backbone, weights, config.image.form, config.adapter, seed)
        if state is not None:
            net.load_adapter_state(state)
        return net

    def features(net: Network) -> Features:
        return Features(augmented_views(net, train, flip=True), extract_features(net, test))

    bare = build_network(config.backbone, weights, config.image.form)
    result = Learnt(config.seed, config.head, sizes, labels, targets, features(bare))
    adapters: list[State] = []
    kept: list[list[int]] = []
    wanted = {rule: inputs_of(MERGE_RULES[rule]) for rule in rules}
    inputs_of_rules: dict[str, Any] = {
        "samples": [],
        "base": network(None, derive_seed(config.seed, "adapter", 1)).adapter_state(),
        "seed": derive_seed(config.seed, "merge"),
        **{name: [] for name in STATISTICS},
    }
    for stage, size in enumerate(tqdm(sizes, f"adapters, seed {config.seed}", unit="task")):
        new = result.new(stage)
        inputs, outputs = train[new], labels[new] - (result.seen(stage) - size)
        if kept:
            old = result.exemplars[-1]
            inputs = torch.cat([inputs, train[old]])
            outputs = torch.cat([outputs, torch.full((len(old),), size)])
        start = adapters[-1] if adapters and config.adapter.init == "previous" else None
        net = network(start, derive_seed(config.seed, "adapter", stage + 1))
        seed = derive_seed(config.seed, "train", stage + 1)
        trained = train_adapter(net, inputs, outputs, size, config.train, seed)
        adapters.append(trained.adapter)
        result.task_heads.append(trained.head)
        result.alone.append(features(net))
        result.merged.append(features(network(average(adapters))) if stage else result.alone[0])
        inputs_of_rules["samples"].append(len(new))
        for name in STATISTICS.keys() & set().union(*wanted.values()):
            inputs_of_rules[name].append(STATISTICS[name](net, trained.head, train[new]))
        for rule, names in wanted.items():
            merged = MERGE_RULES[rule](adapters, **{name: inputs_of_rules[name] for name in names})
            result.by_rule.setdefault(rule, []).append(features(network(merged)))
        count = quota(config.memory, result.seen(stage))
        for label in range(result.seen(stage) - size, result.seen(stage)):
            members = (labels == label).nonzero().flatten()
            chosen = herd(result.merged[-1].train[0, members], count)
            kept.append(members[chosen].tolist())
        kept = [indices[:count] for indices in kept]
        result.exemplars.append(torch.tensor([i for indices in kept for i in indices]))
    return result


Row = Callable[[Learnt], list[Tensor]]


def of_network(net: str, learnt: Learnt, stage: int) -> Features:
    """Under which network features are taken after a task; "a + b": under two, side by side."""
    found = {"merged": learnt.merged[stage], "first": learnt.merged[0], "frozen": learnt.frozen}
    parts = [found[name] for name in net.split(" + ")]
    return Features(
        torch.cat([part.train for part in parts], -1), torch.cat([part.test for part in parts], -1)
    )


def predictions(head: State, features: Tensor) -> Tensor:
    return unified_scores(features, head).predicted


def tuned(net: str, init: str) -> Row:
    """Balanced fine-tuning on the exemplars."""

    def row(learnt: Learnt) -> list[Tensor]:
        result = []
        for stage, kept in enumerate(learnt.exemplars):
            features = of_network(net, learnt, stage)
            evidence = Evidence(
                features.train[:, kept],
                learnt.labels[kept],
                None,
                None,
                None,
                learnt.task_heads[: stage + 1],
                learnt.seed,
            )
            head = FineTune()(evidence, learnt.head.model_copy(update={"init": init}))
            result.append(predictions(head, features.test))
        return result

    return row


def unmerged(learnt: Learnt) -> list[Tensor]:
    """ACL: every adapter and head kept."""
    result, heads = [], []
    for stage, kept in enumerate(learnt.exemplars):
        heads.append(learnt.task_heads[stage])
        first = 0
        for task, size in enumerate(learnt.sizes[: stage + 1]):
            if stage:
                labels = task_labels(learnt.labels[kept], first, size)
                seed = derive_seed(learnt.seed, "fine-tune task", task + 1, stage + 1)
                features = learnt.alone[task].train[:, kept]
                heads[task] = fine_tune_head(features, labels, heads[task], learnt.head, seed)
            first += size
        tests = [features.test for features in learnt.alone[: stage + 1]]
        result.append(least_others_scores(tests, heads).predicted)
    return result


def unmerged_statistics(learnt: Learnt) -> list[list[ClassStatistics]]:
    """Of all classes seen, under each adapter alone, after each task.

    Classes that arrive after an adapter are measured under it on all their images; those before it
    are carried over from the adapter before, as merging's drift is.
    """
    result: list[list[ClassStatistics]] = []
    for stage, size in enumerate(learnt.sizes):
        new = learnt.new(stage)
        labels = learnt.labels[new] - (learnt.seen(stage) - size)
        alone = [features.train for features in learnt.alone[: stage + 1]]
        known = [measure_classes(features[:, new], labels, size) for features in alone]
        if stage:
            images = torch.cat([new, learnt.exemplars[stage - 1]])
            before, after = (features[:, images].flatten(0, 1) for features in alone[-2:])
            carried = measure_drift(before, after, learnt.head.drift_ridge).statistics(
                result[-1][-1]
            )
            old = [*result[-1], carried]
            known = [append_classes(*pair) for pair in zip(old, known, strict=True)]
        result.append(known)
    return result


def ensemble(learnt: Learnt) -> list[Tensor]:
    """Every adapter kept, each with the discriminant over all classes; the mean of their scores."""
    result, learnt = [], learnt.normalised(learnt.head.power)
    for known in unmerged_statistics(learnt):
        heads = [discriminant_head(mine, learnt.head) for mine in known]
        scores = [
            linear(features.test, head["weight"], head["bias"])
            for features, head in zip(learnt.alone[: len(heads)], heads, strict=True)
        ]
        result.append(torch.stack(scores).mean(0).argmax(1))
    return result


def choosing_by_others(learnt: Learnt) -> list[Tensor]:
    """ACL's rule with discriminants: each adapter's for its own classes, from all their images, and
    one for "others", the remembered images of all the rest.
    """
    result, learnt = [], learnt.normalised(learnt.head.power)
    for stage, kept in enumerate(learnt.exemplars):
        heads, first = [], 0
        for task, size in enumerate(learnt.sizes[: stage + 1]):
            own = learnt.new(task)
            mine = task_labels(learnt.labels[kept], first, size)
            rest = kept[mine == size]
            images = torch.cat([own, rest])
            labels = torch.cat([learnt.labels[own] - first, torch.full((len(rest),), size)])
            known = measure_classes(
                learnt.alone[task].train[:, images], labels, size + bool(len(rest))
            )
            heads.append(discriminant_head(known, learnt.head))
            first += size
        tests = [features.test for features in learnt.alone[: stage + 1]]
        if stage:
            result.append(least_others_scores(tests, heads).predicted)
        else:  # there are no others
            result.append(predictions(heads[0], tests[0]))
    return result


def followed(
    learnt: Learnt, net: str, drift: str, ridge: float, pooling: Pooling = "samples"
) -> list[ClassStatistics]:
    """Class statistics after each task; `drift` says which images show what merging changed."""
    result: list[ClassStatistics] = []
    for stage, size in enumerate(learnt.sizes):
        new, now = learnt.new(stage), of_network(net, learnt, stage).train
        labels = learnt.labels[new] - (learnt.seen(stage) - size)
        statistics_ = measure_classes(now[:, new], labels, size, pooling)
        if result:
            old, before = result[-1], of_network(net, learnt, stage - 1).train
            shown = {"new": new, "exemplars": learnt.exemplars[stage - 1]}
            images = torch.cat([new[:0], *(shown[n] for n in shown if n in drift.split())])
            if "merged" in net and len(images):
                moved = (before[:, images].flatten(0, 1), now[:, images].flatten(0, 1))
                old = measure_drift(*moved, ridge).statistics(old)
            statistics_ = append_classes(old, statistics_)
        result.append(statistics_)
    return result


def discriminant(net: str, drift: str = "new and exemplars", **head: float | str | None) -> Row:
    """The discriminant of class statistics, with other settings of the head (power None: as is)."""

    def row(learnt: Learnt) -> list[Tensor]:
        config = learnt.head.model_copy(update=head)
        learnt = learnt.normalised(config.power)
        kept = followed(learnt, net, drift, config.drift_ridge, config.pooling)
        return [
            predictions(discriminant_head(known, config), of_network(net, learnt, stage).test)
            for stage, known in enumerate(kept)
        ]

    return row


def scores_averaged(*nets: str) -> Row:
    """The mean of the calibrated log-probabilities that discriminants of several networks give."""

    def row(learnt: Learnt) -> list[Tensor]:
        learnt = learnt.normalised(learnt.head.power)

        def said(net: str, stage: int, known: ClassStatistics) -> Tensor:
            features, new = of_network(net, learnt, stage), learnt.new(stage)
            head = discriminant_head(known, learnt.head)
            views, labels = features.train[:, new], learnt.labels[new]
            temperature = calibration_temperature(known, views, labels, learnt.head)
            logits = linear(features.test, head["weight"], head["bias"])
            return (logits / temperature).log_softmax(1)

        ridge = learnt.head.drift_ridge
        kept = {net: followed(learnt, net, "new and exemplars", ridge) for net in nets}
        return [
            torch.stack([said(net, stage, kept[net][stage]) for net in nets]).mean(0).argmax(1)
            for stage in range(len(learnt.sizes))
        ]

    return row


def drift_seen_with_frozen(learnt: Learnt) -> list[Tensor]:
    """The discriminant on merged's features, whose drift was seen on frozen's, too, which stay."""
    result, learnt = [], learnt.normalised(learnt.head.power)
    first = learnt.frozen.test.shape[1]
    both = followed(learnt, "frozen + merged", "new and exemplars", learnt.head.drift_ridge)
    for stage, known in enumerate(both):
        own = ClassStatistics(known.means[:, first:], known.scatter[first:, first:], known.counts)
        head = discriminant_head(own, learnt.head)
        result.append(predictions(head, learnt.merged[stage].test))
    return result


def by_frequency(learnt: Learnt) -> list[Tensor]:
    """The discriminant with the classes' frequencies as priors; with equal priors, as everywhere
    else, its logits are adjusted already.
    """
    result, learnt = [], learnt.normalised(learnt.head.power)
    for stage, known in enumerate(kept_statistics(learnt)):
        head = discriminant_head(known, learnt.head)
        head["bias"] = head["bias"] + known.counts.log().float()
        result.append(predictions(head, learnt.merged[stage].test))
    return result


def ridge(amount: float, balanced: bool) -> Row:
    """Ridge regression on one-hot targets, which follows from the statistics as well as from all
    samples (an analytic head, arXiv 2205.14922); `balanced`: every class weighs the same.
    """

    def row(learnt: Learnt) -> list[Tensor]:
        result, learnt = [], learnt.normalised(learnt.head.power)
        for stage, known in enumerate(kept_statistics(learnt)):
            shares = known.counts / known.counts.sum()
            if balanced:
                shares = torch.full_like(shares, 1 / len(shares))
            centre = shares @ known.means
            means = known.means - centre
            gram = known.covariance + means.T @ (shares.unsqueeze(1) * means)
            regular = gram + amount * gram.diagonal().mean() * torch.eye(len(gram)).double()
            weight = torch.linalg.solve(regular, (shares.unsqueeze(1) * means).T).T
            head = {"weight": weight.float(), "bias": (shares - weight @ centre).float()}
            result.append(predictions(head, learnt.merged[stage].test))
        return result

    return row


def measured_on(what: str) -> Row:
    """Statistics that need no drift correction: of the exemplars under the network as it is, or, as
    nobody may, of all images that ever were.
    """

    def row(learnt: Learnt) -> list[Tensor]:
        result, learnt = [], learnt.normalised(learnt.head.power)
        for stage, kept in enumerate(learnt.exemplars):
            everything = (learnt.labels < learnt.seen(stage)).nonzero().flatten()
            images = kept if what == "exemplars" else everything
            features = learnt.merged[stage]
            known = measure_classes(
                features.train[:, images], learnt.labels[images], learnt.seen(stage)
            )
            head = discriminant_head(known, learnt.head)
            result.append(predictions(head, features.test))
        return result

    return row


def kept_statistics(learnt: Learnt) -> list[ClassStatistics]:
    """What the pipeline keeps of the merged network's features."""
    return followed(learnt, "merged", "new and exemplars", learnt.head.drift_ridge)


def then_tuned(learnt: Learnt) -> list[Tensor]:
    """The discriminant as the start of balanced fine-tuning."""
    result, learnt = [], learnt.normalised(learnt.head.power)
    for stage, known in enumerate(kept_statistics(learnt)):
        kept, features = learnt.exemplars[stage], learnt.merged[stage]
        start = discriminant_head(known, learnt.head)
        seed = derive_seed(learnt.seed, "fine-tune", learnt.seen(stage))
        inputs = features.train[:, kept]
        head = fine_tune_head(inputs, learnt.labels[kept], start, learnt.head, seed)
        result.append(predictions(head, features.test))
    return result


def sampled(learnt: Learnt, count: int = 100) -> list[Tensor]:
    """Features drawn from each class's normal distribution take the place of exemplars; as they
    are, for in normalised ones a head learns too slowly with the same settings.
    """
    result = []
    for stage, known in enumerate(kept_statistics(learnt)):
        classes, size = known.means.shape
        generator = torch.Generator().manual_seed(learnt.seed)
        jitter = 1e-6 * known.covariance.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        root = torch.linalg.cholesky(known.covariance + jitter)
        noise = torch.randn(classes, count, size, generator=generator, dtype=torch.float64)
        drawn = (known.means.unsqueeze(1) + noise @ root.T).float().flatten(0, 1)
        labels = torch.arange(classes).repeat_interleave(count)
        config = learnt.head.model_copy(update={"epochs": 30})
        start = new_head(size, classes, learnt.seed)
        head = fine_tune_head(drawn.unsqueeze(0), labels, start, config, learnt.seed)
        result.append(predictions(head, learnt.merged[stage].test))
    return result


def shrunk(net: str) -> dict[str, Row]:
    """The discriminant with more or less shrinkage; 1 is the nearest mean. And with a covariance in
    which every class weighs the same.
    """
    return {
        f"  shrinkage {amount} ({net})": discriminant(net, shrinkage=amount)
        for amount in (0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 1.0)
    } | {
        f"  classes' covariances averaged, shrinkage {amount} ({net})": discriminant(
            net, shrinkage=amount, pooling="classes"
        )
        for amount in (0.2, 0.35, 0.5)
    }


ROWS: dict[str, Row] = {
    "unmerged (ACL)": unmerged,
    "unmerged, a discriminant for a task's classes and others": choosing_by_others,
    "unmerged, a discriminant for all classes, scores averaged": ensemble,
    "frozen, fine-tuned": tuned("frozen", "new"),
    "frozen, discriminant": discriminant("frozen"),
    **shrunk("frozen"),
    "merged, fine-tuned from a new head": tuned("merged", "new"),
    "merged, fine-tuned from the tasks' heads": tuned("merged", "task_heads"),
    "merged, discriminant": discriminant("merged"),
    "  features as they are": discriminant("merged", power=None),
    "  features at unit length (power 1)": discriminant("merged", power=1.0),
    "  their square roots at unit length (power 0.5)": discriminant("merged", power=0.5),
    "  statistics not corrected for drift": discriminant("merged", drift="nothing"),
    "  drift seen on exemplars alone": discriminant("merged", drift="exemplars"),
    "  drift seen on new images alone": discriminant("merged", drift="new"),
    "  drift ridge 0.03": discriminant("merged", drift_ridge=0.03),
    "  drift ridge 3": discriminant("merged", drift_ridge=3.0),
    **shrunk("merged"),
    "  drift seen with frozen's features beside": drift_seen_with_frozen,
    "  statistics of the exemplars alone": measured_on("exemplars"),
    "  classes' frequencies as priors": by_frequency,
    "  ridge regression 0.1": ridge(0.1, balanced=False),
    "  ridge regression 1": ridge(1.0, balanced=False),
    "  ridge regression 0.1, classes weigh the same": ridge(0.1, balanced=True),
    "  ridge regression 1, classes weigh the same": ridge(1.0, balanced=True),
    "  fine-tuned afterwards": then_tuned,
    "  fine-tuned on sampled features": sampled,
    "  statistics of all images (not allowed)": measured_on("all"),
    "first adapter alone, discriminant, no images": discriminant("first"),
    **shrunk("first"),
    **{
        f"{net}, side by side, shrinkage {amount}": discriminant(net, shrinkage=amount)
        for net in ("frozen + merged", "first + merged")
        for amount in (0.35, 0.5, 0.65)
    },
    "frozen and merged, scores averaged": scores_averaged("frozen", "merged"),
    "first and merged, scores averaged": scores_averaged("first", "merged"),
}


def merged_by(rule: str) -> Row:
    """The discriminant on the adapters merged by a rule."""
    return lambda learnt: discriminant("merged")(replace(learnt, merged=learnt.by_rule[rule]))


def recalls(learnt: Learnt, row: Row) -> list[float]:
    """Mean class recall in % after each task."""
    result = []
    for stage, predicted in enumerate(row(learnt)):
        right = [
            (predicted[learnt.targets == label] == label).double().mean()
            for label in range(learnt.seen(stage))
        ]
        result.append(100 * float(torch.stack(right).mean()))
    return result


def table(results: dict[str, dict[int, list[float]]], seeds: Sequence[int]) -> str:
    """Markdown: a row each, its seeds and their mean."""
    lines = [
        "| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |",
        "|---|" + "---:|" * (len(seeds) + 1),
    ]
    for name, runs in results.items():
        pairs = [(statistics.mean(runs[seed]), runs[seed][-1]) for seed in seeds]
        pairs.append((statistics.mean(a for a, _ in pairs), statistics.mean(b for _, b in pairs)))
        lines.append(f"| {name} | " + " | ".join(f"{a:.1f} / {b:.1f}" for a, b in pairs) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", default="benchmarks/medical.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 50, 42])
    parser.add_argument("--rules", nargs="+", default=[], choices=list(MERGE_RULES))
    parser.add_argument("--output", type=Path, help="JSON file for the recall of every stage")
    arguments = parser.parse_args()
    overrides = parse_overrides(arguments.set)
    rows = ROWS | {f"merged by {rule}, discriminant": merged_by(rule) for rule in arguments.rules}
    results: dict[str, dict[int, list[float]]] = {name: {} for name in rows}
    with tempfile.TemporaryDirectory() as store:
        for seed in arguments.seeds:
            config = load_config(arguments.params, {**overrides, "seed": seed})
            learnt = learn(config, Path(store), arguments.rules)
            for name, row in tqdm(rows.items(), f"heads, seed {seed}", unit="row"):
                results[name][seed] = recalls(learnt, row)
    print(table(results, arguments.seeds))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except DynammoError as error:
        raise SystemExit(f"error: {error}") from None
