"""The methods that the flow learns in steps of their own: DynaMMo and what it is made of."""

from __future__ import annotations

from dynammo.methods.base import About, Described, Style


class Merged(Described):
    """DynaMMo: the deployable model."""

    about = About(
        meaning="all adapters averaged into one, and one head: one pass an image (DynaMMo)",
        source="arXiv 2404.14099",
        memory="exemplars",
        style=Style("#0072B2", "o"),
    )
    sections = ("adapter", "train", "memory", "merge", "head")
    shared_adapters = "merged"
    revisable = True


class Unmerged(Described):
    """ACL: the same adapters, unmerged. The task is the one whose output for others is least."""

    about = About(
        meaning="every adapter and head kept: one pass a task for each image (ACL)",
        source="arXiv 2304.09042",
        memory="exemplars",
        style=Style("#D55E00", "s"),
    )
    sections = ("adapter", "train", "memory", "merge", "head")  # merged chooses its exemplars
    shared_adapters = "each"


class Frozen(Described):
    """The baseline that learns no features."""

    about = About(
        meaning="no adapter: the pretrained backbone, and the same kind of head as merged",
        source="baseline",
        memory="exemplars",
        style=Style("#595959", "^"),
    )
    sections = ("memory", "head")
    revisable = True
