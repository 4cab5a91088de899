"""What several rounds of adapter training at sites are worth, on images that the sites held out.

As `dynammo federate --simulate --rounds N` on these sites, in this process and without Flower.
After each round of training the learner is made that this round would end with, and the sites count
its answers to their own test images, one of each patient and class. Where sites come without test
images, these are a fifth of their training images: settings may be chosen by them.

    python benchmarks/federated_rounds.py data/skin8/by_class_?.csv -s image.size=64 \
        --seed 1 --seed 50 --seed 42
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dynammo.config import Config, parse_overrides
from dynammo.config.reading import layered
from dynammo.evaluation.metrics import accuracy, from_counts, mean_class_recall
from dynammo.federated.judge import Counts, Model, judge_site
from dynammo.federated.merge import SETTINGS, check_federated, head_of, merge_sites
from dynammo.federated.site import SiteBatch, measure_site, read_site, train_site
from dynammo.learner.settings import DEPLOYED, first_settings
from dynammo.state import State


def judged(
    config: Config, merged: State, sites: Sequence[SiteBatch], least: int
) -> tuple[float, float]:
    """Accuracy and mean class recall of the learner that a merged adapter leads to."""
    found = [measure_site(config, merged, own)[DEPLOYED].statistics for own in sites]
    classes = [sorted(own.patients) for own in sites]
    names, _, head = head_of(config, list(zip(classes, found, strict=True)))
    model = Model(names, merged, head)
    counts = Counts.total(judge_site(config, model, {}, own, least) for own in sites)
    assert counts is not None
    true, said = from_counts(counts.confusion.numpy())
    return accuracy(true, said), mean_class_recall(true, said, len(names))


def main() -> None:
    """Print a line a seed and round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sites", type=Path, nargs="+", help="a batch for each site, in name order")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seed", type=int, action="append", help="may be repeated; default: 1")
    parser.add_argument("--min-patients", type=int, default=5, help="of a class; default: 5")
    parser.add_argument("-s", "--set", action="append", default=[], help="a setting, KEY=VALUE")
    given = parser.parse_args()
    print("seed | rounds | accuracy | mean class recall")
    for seed in given.seed or [1]:
        own = layered(SETTINGS, {"methods": [DEPLOYED]}, parse_overrides(given.set), {"seed": seed})
        config = first_settings("rounds", None, own)
        check_federated(config)
        sites = [read_site(path, config, given.min_patients) for path in given.sites]
        merged: State | None = None
        for turn in range(1, given.rounds + 1):
            adapters = [
                train_site(config, number, batch, turn, merged)
                for number, batch in enumerate(sites, start=1)
            ]
            merged = merge_sites(config, adapters, [len(batch.training) for batch in sites])
            right, recall = judged(config, merged, sites, given.min_patients)
            print(f"{seed} | {turn} | {100 * right:.1f} | {100 * recall:.1f}", flush=True)


if __name__ == "__main__":
    main()
