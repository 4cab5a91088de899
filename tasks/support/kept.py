"""Take images out of what is kept of them: test sets and memories."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dynammo.checkpoint import CheckpointStore, Ref
from dynammo.deploy.manifest import hash_tensors
from dynammo.state import State
from tasks.support.workspace import Kept


def select_tests(kept: Kept, chosen: Tensor, names: Sequence[str], store: CheckpointStore) -> Kept:
    """Some images of a test set.

    Args:
        kept: N images.
        chosen: (N,) bool.
        names: of the classes that stay, a subset of the set's; the others' images go, too.
        store: of the checkpoints.
    """
    rest, mask = _labels_left(kept, chosen, names, store)
    if bool(mask.all()) and list(names) == kept["names"]:
        return kept

    def cut(ref: Ref, kind: str, name: str) -> Ref:
        return store.save(kind, {name: store.load(ref)[name][mask]}, {"of": ref["sha256"]})

    return {
        "names": list(names),
        "labels": store.save("test-labels", rest, {"of": kept["labels"]["sha256"]}),
        "images": cut(kept["images"], "test-images", "images") if kept["images"] else None,
        "features": {
            method: cut(ref, "test-features", "features")
            for method, ref in kept["features"].items()
        },
    }


def hash_without(kept: Kept, classes: Collection[str], store: CheckpointStore) -> str | None:
    """SHA-256 of the labels that `select_tests` would write of a test set without some classes;
    none where no image would be left. Nothing is written.
    """
    names = [name for name in kept["names"] if name not in classes]
    if not names:
        return None
    if names == kept["names"]:
        return kept["labels"]["sha256"]
    rest, _ = _labels_left(kept, torch.tensor(True), names, store)
    return hash_tensors(rest)


def _labels_left(
    kept: Kept, chosen: Tensor, names: Sequence[str], store: CheckpointStore
) -> tuple[State, Tensor]:
    """What is kept of the labels of images that stay, and (N,) which do."""
    own = store.load(kept["labels"])
    place = torch.tensor(
        [names.index(name) if name in names else -1 for name in kept["names"]], dtype=torch.int64
    )
    labels = place[own["labels"]]
    mask = chosen & (labels >= 0)
    return {name: values[mask] for name, values in {**own, "labels": labels}.items()}, mask


def select_exemplars(memory: Ref, chosen: Tensor, places: Tensor, store: CheckpointStore) -> Ref:
    """Some images of a memory.

    Args:
        memory: of M images and C classes.
        chosen: (M,) bool.
        places: indices of the classes that stay, in their new order; the others' images must not be
            among the chosen.
        store: of the checkpoints.
    """
    state = store.load(memory)
    if bool(chosen.all()) and torch.equal(places, torch.arange(len(state["counts"]))):
        return memory
    owner = torch.arange(len(state["counts"])).repeat_interleave(state["counts"])
    counts = torch.bincount(owner[chosen], minlength=len(state["counts"]))[places]
    tensors = {part: state[part][chosen] for part in ("images", "files", "groups")}
    rest = {**tensors, "counts": counts, "seen": state["seen"][places]}
    return store.save("exemplars", rest, {"of": memory["sha256"]})
