"""Whether what a configuration names fits together, found out before anything is computed."""

from __future__ import annotations

from dynammo.config import Config
from dynammo.errors import ConfigError
from dynammo.heads import HEAD_RULES
from dynammo.merging.measures import check_rule
from dynammo.methods import METHODS
from dynammo.methods.base import check_methods
from dynammo.network.backbones import create_backbone
from dynammo.network.batch_norm import check_batch_norms
from dynammo.network.network import build_network


def check_parts(config: Config) -> None:
    """Try the network, the merge rule and the methods, untrained.

    Adapters and the merge rule count only where a method has adapters.

    Raises:
        DynammoError: wrong names of modules, options of adapters, merge rules, methods, or parts
            that do not suit each other.
    """
    adapted = any("adapter" in METHODS[name].sections for name in config.methods)
    adapter = config.adapter if adapted else None
    network = build_network(config.backbone, None, config.image.form, adapter)
    if config.backbone.renormalise:
        check_batch_norms(create_backbone(config.backbone.name))
    if adapted:
        check_rule(config.merge, network, config.image.form)
        _check_replay(config)
        _check_trust(config)
    check_methods(config)


def _check_replay(config: Config) -> None:
    """Features are drawn from the merged model's statistics, and pass through a head as they are.

    Raises:
        ConfigError: there are no such.
    """
    if not config.train.replay:
        return
    if "merged" not in config.methods or HEAD_RULES[config.head.rule].evidence != "statistics":
        raise ConfigError(
            [
                "train.replay draws from the class statistics of merged: it needs methods to name "
                "merged and a head.rule that takes statistics, such as discriminant"
            ]
        )
    if config.head.power != 1:
        raise ConfigError([f"train.replay needs head.power 1, got {config.head.power}"])


def _check_trust(config: Config) -> None:
    """What is scaled must be linear in its weights, and it is judged with the merged model's head.

    Raises:
        ConfigError: it is not so.
    """
    if config.merge.trust == "full":
        return
    statistics = HEAD_RULES[config.head.rule].evidence == "statistics"
    if config.adapter.name != "linear" or "merged" not in config.methods or not statistics:
        raise ConfigError(
            [
                "merge.trust held_out needs adapter.name linear, methods to name merged, and a "
                "head.rule that takes statistics, such as discriminant"
            ]
        )
