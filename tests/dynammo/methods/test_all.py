"""What holds for every method, whatever it does."""

from __future__ import annotations

import re

import pytest
import torch

from dynammo.config import load_config
from dynammo.errors import ConfigError
from dynammo.heads.linear import Scores
from dynammo.methods import METHODS
from dynammo.methods.base import Method, check_methods, create_method
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import (
    FIRST,
    SECOND,
    configured,
    create,
    learn,
    weights,
)

GENERIC = [name for name in METHODS if issubclass(METHODS[name], Method)]


def predict(method: Method) -> Scores:
    return method.scores(extract_features(method.network, FIRST.with_(SECOND).images))


@pytest.mark.parametrize("name", GENERIC)
def test_a_method_goes_on_from_its_state_as_if_it_had_never_stopped(name: str) -> None:
    config = configured()
    without_stop = create(name, config)
    first = learn(without_stop, 1)
    saved = {key: value.clone() for key, value in without_stop.state().items()}
    trained = learn(without_stop, 2)

    resumed = create(name, config)
    resumed.load_state(saved)
    assert learn(resumed, 2) == trained
    again = create(name, config)
    again.load_state(resumed.state())
    expected = predict(without_stop)
    for other in (resumed, again):
        for one, two in zip(expected, predict(other), strict=True):
            assert torch.equal(one, two)

    assert expected.probabilities.shape == (24, 4)
    assert expected.predicted.max() < 4
    assert bool(expected.probabilities.isfinite().all())
    assert bool(((expected.confidence >= 0) & (expected.confidence <= 1)).all())
    assert without_stop.head_weights > 0
    assert all(value.device.type == "cpu" for value in without_stop.state().values())
    if not without_stop.bare:  # trained for every task, or for the first alone
        assert len(first) == config.train.epochs
        assert len(trained) in (0, config.train.epochs)


@pytest.mark.parametrize("name", GENERIC)
def test_a_method_says_what_its_result_depends_on(name: str) -> None:
    """With the sections that it does not name at other values, it learns the same."""
    others = {
        "train": {"train__epochs": 2},
        "adapter": {"adapter__name": "conv"},
        "head": {"head__epochs": 1},
    }
    make = METHODS[name]
    ignored = {k: v for s, o in others.items() if s not in make.sections for k, v in o.items()}
    states = []
    for config in (configured(), configured(**ignored)):
        method = create(name, config)
        learn(method, 1)
        states.append(method.state())
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_every_method_is_described() -> None:
    for name in METHODS:
        about = METHODS[name].about
        assert about.meaning and not about.meaning.endswith("."), name
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}|[A-Z]+ \d{4}|baseline", about.source), name
    styles = [METHODS[name].about.style for name in METHODS]
    assert len(set(styles)) == len(styles), "two methods look the same in a figure"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ewc": {"strenght": 1}}, "ewc: unknown option 'strenght'; known: strength, decay, s"),
        ({"ncm": {"k": 1}}, "ncm: unknown option 'k'; it takes none"),
        ({"ewc": {"strength": "high"}}, "ewc.strength must be like 100.0, got 'high'"),
        ({"ewc": {"samples": 0.5}}, "ewc.samples must be like 256, got 0.5"),
        (
            {"ranpac": {"projection": 0}},
            "ranpac: projection and projections must be at least 1, got 0",
        ),
        ({"lda": {"shrinkage": 2}}, "lda: shrinkage must be from 0 to 1, got 2"),
        ({"fsa": {"shrinkage": -1}}, "fsa: shrinkage must be from 0 to 1, got -1"),
        ({"slda": {"shrinkage": 0}}, "slda: shrinkage must be above 0 and at most 1, got 0"),
        ({"klda": {"gamma": 0}}, "klda: projection must be at least 1, and gamma and ridge above"),
        ({"fecam": {"power": 0}}, "fecam: power must be above 0 and at most 1, alpha1 and alpha2"),
        ({"layup": {"ridge": 0}}, "layup: ridge must be above 0, got 0"),
        ({"anacp": {"ridge": 0}}, "anacp: ridge must be above 0, shrinkage above 0 and at most 1"),
        ({"anacp": {"samples": 0}}, "anacp: projection and samples must be at least 1"),
        ({"ranpac": {"projections": 0}}, "projection and projections must be at least 1, got 0"),
        ({"clsnet": {"hidden": 0}}, "clsnet: hidden must be at least 1, and strength at least 0"),
        ({"bic": {"held_out": 1.0}}, "bic: held_out must be within 0 and 1, and decay above 0"),
        ({"ucir": {"scale": 0.0}}, "ucir: scale must be above 0, and proxies at least 1"),
        ({"ucir": {"hardest": 0}}, "ucir: hardest must be at least 1, got 0"),
        ({"podnet": {"balanced": -1}}, "podnet: balanced must be at least 0, got -1"),
        ({"mecil": {"reduction": 0.5}}, "mecil: reduction must be from 1 to the image's pixels"),
        ({"dflm": {"mixed": 2}}, "dflm: mixed must be from 0 to 1, got 2"),
        ({"merged": {"size": 1}}, "merged: it takes none, but those of the sections"),
    ],
)
def test_wrong_options_are_named(options: dict[str, dict[str, object]], problem: str) -> None:
    config = configured(methods=list(options), method_options=options)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        check_methods(config)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"adapter.tasks": 1}, "adapter.tasks: unmerged needs an adapter for every task"),
        (
            {"memory.per_class": 0, "methods": ["unmerged", "ncm", "icarl"]},
            "memory.per_class 0: methods that need exemplars: unmerged, icarl",
        ),
        (
            {"memory.per_class": 0, "methods": ["frozen"], "head.rule": "fine_tune"},
            "memory.per_class 0: head.rule fine_tune needs exemplars",
        ),
        (
            {"adapter.tasks": 1, "methods": ["merged"], "head.rule": "fine_tune"},
            "adapter.tasks: head.init task_heads needs a head of every task",
        ),
    ],
)
def test_what_a_method_cannot_do_without_is_named(
    settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        check_methods(load_config(None, settings))


def test_merged_and_frozen_need_no_image() -> None:
    check_methods(
        load_config(
            None, {"preset": "no_images", "memory.per_class": 0, "methods": ["merged", "frozen"]}
        )
    )


def test_options_of_an_unknown_method_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown method 'mine'; known: "):
        load_config(None, {"method_options": {"mine": {"a": 1}}})


def test_options_reach_the_method() -> None:
    config = configured(method_options__ewc={"strength": 7, "decay": 0.5})
    method = create_method("ewc", config, weights(config))
    assert vars(method)["strength"] == 7
    assert vars(method)["decay"] == 0.5
