"""Whether what a configuration names fits together, found out before anything is computed."""

from __future__ import annotations

from dynammo.config import Config
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
    network = build_network(config.backbone, None, config.image.size, adapter)
    if config.backbone.renormalise:
        check_batch_norms(create_backbone(config.backbone.name))
    if adapted:
        check_rule(config.merge, network, config.image.size)
    check_methods(config)
