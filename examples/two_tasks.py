"""The library alone: two adapters on handwritten digits, merged, folded, and one head.

python examples/two_tasks.py        # from the project's folder, after `make setup`
"""

from pathlib import Path

import torch

from dynammo import MERGE_RULES, build_network, load_config, load_source, train_adapter
from dynammo.data.formats.pictures import load_image
from dynammo.heads.discriminant import discriminant_head
from dynammo.heads.statistics import measure_classes
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import extract_features
from dynammo.network.folding import fold_adapters

SIZE, TASKS = 32, (["0", "1", "2"], ["3", "4", "5"])
config = load_config(None, {"train.epochs": 3, "preset": "best", "head.flip": False})
digits = load_source("digits", Path("data/digits"))


def pictures(split: str, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 32, 32) uint8 and (N,) places in `names` of a split's images."""
    own = digits.select(split, names)
    images = [torch.from_numpy(load_image(digits.root / sample.file, SIZE)) for sample in own]
    labels = torch.tensor([names.index(sample.label) for sample in own])
    return torch.stack(images).permute(0, 3, 1, 2), labels


weights = pretrained_weights(config.backbone)
network = build_network(config.backbone, weights, SIZE, config.adapter)
adapters = [
    train_adapter(network, *pictures("train", task), len(task), config.train, seed=1).adapter
    for task in TASKS  # each adapter starts where the one before ended
]
network.load_adapter_state(MERGE_RULES["average"](adapters))
folded = build_network(config.backbone, fold_adapters(network).weights, SIZE)  # no adapter is left

known = [name for task in TASKS for name in task]
images, labels = pictures("train", known)
statistics = measure_classes(extract_features(folded, images)[None], labels, len(known))
head = discriminant_head(statistics, config.head)

images, labels = pictures("test", known)
logits = extract_features(folded, images) @ head["weight"].T + head["bias"]
right = (logits.argmax(1) == labels).float().mean()
print(f"{right:.1%} of {len(labels)} test images of {len(known)} digits are right")
