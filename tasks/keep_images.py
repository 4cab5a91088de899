"""A batch's images as they are kept."""

from __future__ import annotations

from dynammo.config import ImageConfig
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.workspace import Classes, Context, Kept, provenance


@step("keep images", task_run_name="keep {split} images {context.label}")
def keep_images(image: ImageConfig, split: str, classes: Classes, context: Context) -> Kept:
    """A batch's images of one split, of the size that `image` says, for when the batch is gone."""
    images, store = Images.of(context), context.checkpoints
    pixels, _ = images.load(split, classes)
    names = classes["names"]
    files, groups = images.marks(split, names, context.key)
    labels = {
        "labels": images.labels(split, names),
        "files": files,
        "groups": groups,
        **images.columns(split, names),
    }
    meta = provenance(image, classes=names, images=classes["hash"])
    return {
        "names": names,
        "labels": store.save(f"{split}-labels", labels, meta),
        "images": store.save(f"{split}-images", {"images": pixels}, meta),
        "features": {},
    }
