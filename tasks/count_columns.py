"""Count what is known of patients beside their images, class by class."""

from __future__ import annotations

from typing import TypedDict

from dynammo.checkpoint import Ref
from dynammo.clinical import NO_COUNTS, Counts, add, count
from tasks.support.caching import step
from tasks.support.images import Images, columns_in
from tasks.support.workspace import Classes, Context


class Counted(TypedDict):
    """Counts (`dynammo.clinical.Counts`) of all classes, and of the batch alone."""

    counts: Ref
    batch: Ref


@step("count columns", task_run_name="count columns: {context.label}")
def count_columns(
    categories: list[str],
    numbers: list[str],
    known: list[str],
    classes: Classes,
    before: Ref | None,
    context: Context,
) -> Counted:
    """Count the values of the batch's training images, and add them to those before.

    Args:
        categories: names of columns.
        numbers: likewise.
        known: all classes, in order of arrival, the batch's new ones last.
        classes: the batch's.
        before: counts of the classes before this batch; none with the first.
        context: places.
    """
    store, images = context.checkpoints, Images.of(context)
    texts = columns_in(images.columns("train", classes["names"]))
    labels = images.labels("train", classes["names"]).tolist()
    own = count(texts, labels, len(classes["names"]), categories, numbers)
    owner = [known.index(name) for name in classes["names"]]
    old: Counts = store.load_json(before) if before else NO_COUNTS
    return {
        "counts": store.save_json("column-counts", {**add(old, own, owner, len(known))}),
        "batch": store.save_json("batch-column-counts", {**own}),
    }
