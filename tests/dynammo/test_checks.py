from typing import Any

import pytest

from dynammo.checks import check_parts
from dynammo.config import load_config
from dynammo.errors import ConfigError

SMALL: dict[str, Any] = {
    "preset": "paper",
    "backbone": {"name": "test_resnet", "pretrained": False},
    "image": {"size": 32},
}


@pytest.mark.parametrize("method", ["merged", "unmerged", "acmap"])
def test_images_too_small_for_the_adapters_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=r"image\.size 32 leaves"):
        check_parts(load_config(None, {**SMALL, "methods": [method]}))


@pytest.mark.parametrize("method", ["frozen", "er", "ncm"])
def test_methods_without_adapters_do_not_mind(method: str) -> None:
    check_parts(load_config(None, {**SMALL, "methods": [method]}))


def test_merge_rules_and_methods_are_tried_too() -> None:
    large = {**SMALL, "image": {"size": 64}}
    with pytest.raises(ConfigError, match=r"merge\.options.*dare"):
        check_parts(load_config(None, {**large, "merge": {"rule": "dare", "options": {"drop": 3}}}))
    with pytest.raises(ConfigError, match=r"method_options\.ewc"):
        check_parts(
            load_config(
                None, {**large, "methods": ["ewc"], "method_options": {"ewc": {"stength": 1}}}
            )
        )


@pytest.mark.parametrize("adapter", ["linear", "conv"])  # conv has BatchNorm of its own
def test_batch_norm_that_is_not_there_cannot_be_moved(adapter: str) -> None:
    backbone = {"name": "test_convnext", "pretrained": False, "renormalise": 0.1}
    large = {"preset": "best", "image": {"size": 128}, "adapter": {"name": adapter}}
    with pytest.raises(ConfigError, match=r"backbone\.renormalise: this backbone has no BatchNorm"):
        check_parts(load_config(None, {**large, "backbone": backbone}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["unmerged"]}, "methods to name merged"),
        ({"head": {"rule": "fine_tune"}}, "such as discriminant"),
        ({"head": {"power": 0.5}}, r"head\.power 1, got 0\.5"),
    ],
)
def test_replay_draws_from_the_merged_models_statistics_or_not_at_all(
    changes: dict[str, Any], says: str
) -> None:
    sound = {**SMALL, "preset": "best", "image": {"size": 64}, "train": {"replay": 1.0}}
    check_parts(load_config(None, sound))
    with pytest.raises(ConfigError, match=says):
        check_parts(load_config(None, {**sound, **changes}))


@pytest.mark.parametrize(
    "changes",
    [{"methods": ["unmerged"]}, {"head": {"rule": "fine_tune"}}, {"adapter": {"name": "conv"}}],
)
def test_only_linear_adapters_under_a_head_from_statistics_can_be_trusted_in_part(
    changes: dict[str, Any],
) -> None:
    sound = {**SMALL, "preset": "best", "image": {"size": 64}, "merge": {"trust": "held_out"}}
    check_parts(load_config(None, sound))
    with pytest.raises(ConfigError, match=r"merge\.trust held_out needs"):
        check_parts(load_config(None, {**sound, **changes}))
