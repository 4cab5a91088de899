"""What all methods with adapters share: train the batch's, merge all, choose what is remembered."""

from __future__ import annotations

from dynammo.checkpoint import Ref
from flows.methods.base import Lesson, takes_statistics
from tasks.extract_features import extract_memory_features, extract_training_features
from tasks.merge_adapters import merge_adapters
from tasks.merge_inputs import merge_inputs
from tasks.select_exemplars import select_exemplars
from tasks.support.stage import Adapted
from tasks.train_adapter import train_adapter
from tasks.trust_adapter import trust_adapter


def adapt(lesson: Lesson) -> Adapted:
    """Train the batch's adapter, merge it with the earlier ones, and choose what is remembered.

    After the first `adapter.tasks` batches nothing is trained and the merged adapter stays.

    The exemplars are the merged network's choice for every method with adapters: each adapter has
    its own features, and what unmerged learns must not depend on whether merged is beside it.
    """
    config, here = lesson.config, lesson.named("merged")
    last = lesson.before["adapted"] if lesson.before else None
    memory = last["exemplars"] if last else None
    done = len(last["adapters"]) if last else 0
    if last and config.adapter.tasks is not None and done >= config.adapter.tasks:
        features = batch_features(here, last["merged"])
        exemplars = remember(here, last["merged"], features, memory)
        return {**last, "trained": None, "features": features, "exemplars": exemplars}
    classes = lesson.classes
    others = [i for i, name in enumerate(lesson.known_before) if name not in classes["names"]]
    # Statistics are the merged model's: replay is refused without it (`dynammo.checks`).
    known = lesson.before["methods"].get("merged") if lesson.before else None
    trained = train_adapter(
        config.seed,
        *lesson.network,
        config.train.of_adapters,
        lesson.batch["number"],
        classes,
        others,
        lesson.backbone,
        last["adapters"][-1] if last and config.adapter.init == "previous" else None,
        memory,
        last["merged"] if last and config.train.distil else None,
        known["statistics"] if known and config.train.replay else None,
        config.merge.trust == "held_out",
        lesson.context,
    )
    adapters = [*(last["adapters"] if last else []), trained["adapter"]]
    inputs = merge_inputs(
        config, last["inputs"] if last else None, classes, lesson.backbone, trained, lesson.context
    )
    was, trust = last.get("trust") if last else None, None
    earlier = was["whole"] if was else last["merged"] if last else None
    merged = merge_adapters(config.merge, adapters, earlier, inputs, lesson.context)
    if config.merge.trust == "held_out":
        merged, trust = trust_adapter(
            *lesson.network,
            config.head,
            lesson.known_before,
            classes,
            lesson.backbone,
            merged,
            last["merged"] if last else None,
            known["statistics"] if known else None,
            memory,
            was,
            lesson.context,
        )
    features = batch_features(here, merged)
    adapted: Adapted = {
        "trained": trained,
        "numbers": [*(last["numbers"] if last else []), lesson.batch["number"]],
        "adapters": adapters,
        "heads": [*(last["heads"] if last else []), trained["head"]],
        "inputs": inputs,
        "merged": merged,
        "features": features,
        "exemplars": remember(here, merged, features, memory),
    }
    if trust is not None:
        adapted["trust"] = trust
    return adapted


def batch_features(lesson: Lesson, adapter: Ref | None) -> Ref:
    """Features of the batch's images: all views where statistics are taken of them."""
    statistics, head = takes_statistics(lesson.config), lesson.config.head
    return extract_training_features(
        *lesson.network,
        head.flip and statistics,
        head.turns and statistics,
        lesson.classes,
        lesson.backbone,
        adapter,
        lesson.context,
    )


def remember(lesson: Lesson, adapter: Ref | None, features: Ref, previous: Ref | None) -> Ref:
    """The memory after this batch, chosen on features of the network as it is now."""
    again = set(lesson.classes["names"]) & set(lesson.known_before)
    old = None
    if again and previous is not None:
        old = extract_memory_features(
            *lesson.network, lesson.backbone, adapter, previous, lesson.context
        )
    return select_exemplars(
        lesson.config.memory,
        lesson.known,
        lesson.classes,
        features,
        old,
        previous,
        lesson.context,
    )
