"""Whether heat maps show what a model goes by: occlusion, and two sanity checks.

Occlusion: the tenth of an image that its map has highest, or lowest, is blurred away, or the tenth
that another image's map has highest; what the log-odds of the most probable class lose.
Sanity (arXiv 1810.03292): rank correlation of each map with that of a model whose head, or whose
backbone and head, is random. A map that stays the same would show the picture, not the model.

    python benchmarks/heat_maps.py --model results/skin8/model data/skin8/test
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor

from dynammo.config import BackboneConfig
from dynammo.data.formats.pictures import load_image
from dynammo.data.sources.folder import image_files
from dynammo.deploy.heat_map import heat_maps
from dynammo.deploy.predictor import Classifier, Predictor
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("images", type=Path, help="folder, searched as a whole")
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--count", type=int, default=100, help="of images, evenly chosen")
    given = parser.parse_args()
    predictor = Predictor(given.model)
    files = sorted(image_files(given.images))
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, given.count).astype(int)]
    pixels = torch.stack(
        [torch.from_numpy(load_image(f, predictor.form.size)).permute(2, 0, 1) for f in chosen]
    )
    classes = predictor.probabilities(pixels).argmax(1)
    maps = heat_maps(predictor.model, pixels, classes)
    tenth = maps[0].numel() // 10
    high, low = (largest(sign * maps, tenth) for sign in (1, -1))
    before = log_odds(predictor, pixels, classes)
    print(f"{len(chosen)} images; the log-odds of their class lose, mean and standard error:")
    for name, mask in (
        ("highest tenth", high),
        ("another image's", high.roll(1, 0)),
        ("lowest tenth", low),
    ):
        lost = before - log_odds(predictor, blurred(pixels, mask), classes)
        print(f"  {name:16} {lost.mean():+.2f} ({lost.std() / len(lost) ** 0.5:.2f})")
    print("rank correlation with the map of a random model, mean (of two images' maps for scale):")
    for name, other in (
        ("random head", random_model(predictor, backbone=False)),
        ("random network", random_model(predictor, backbone=True)),
    ):
        print(f"  {name:16} {alike(maps, heat_maps(other, pixels, classes)):+.2f}")
    print(f"  {'another image':16} {alike(maps, maps.roll(1, 0)):+.2f}")


def largest(values: Tensor, count: int) -> Tensor:
    """(N, S, S): whether a place is one of the image's `count` largest."""
    limits = values.flatten(1).topk(count).values[:, -1]
    return values >= limits[:, None, None]


def blurred(pixels: Tensor, mask: Tensor) -> Tensor:
    """Pixels with what the mask (N, S, S) has replaced by a blur of an eighth of the side."""
    size = pixels.shape[-1]
    soft = torch.from_numpy(gaussian_filter(pixels.numpy(), size / 8, axes=(2, 3)))
    return torch.where(mask[:, None], soft, pixels)


def log_odds(predictor: Predictor, pixels: Tensor, classes: Tensor) -> Tensor:
    """Of each image's class (N,)."""
    shares = predictor.probabilities(pixels)[torch.arange(len(pixels)), classes]
    return shares.logit(eps=1e-12)


def random_model(predictor: Predictor, backbone: bool) -> Classifier:
    """The model with a random head, and a random backbone where asked."""
    network, manifest = predictor.model.network, predictor.manifest
    if backbone:
        bare = BackboneConfig(**manifest.backbone.model_dump(), pretrained=False)
        network = build_network(bare, pretrained_weights(bare, seed=0), predictor.form.size)
    return Classifier(network, new_head(network.feature_size, len(manifest.classes), seed=0))


def alike(one: Tensor, other: Tensor) -> float:
    """Mean rank correlation of the maps of each image."""
    pairs = zip(one.flatten(1).numpy(), other.flatten(1).numpy(), strict=True)
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))


if __name__ == "__main__":
    main()
