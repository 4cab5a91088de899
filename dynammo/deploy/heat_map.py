"""Heat maps: which places of an image speak for a class, and which against it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dynammo.data.formats.pictures import Pixels, Source, load_image, sheet
from dynammo.deploy.predictor import Classifier, Predictor
from dynammo.errors import ConfigError
from dynammo.network.layouts import intermediate_maps
from dynammo.network.multilevel import level_features
from dynammo.network.network import Network


def heat_maps(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """What the log-odds of a class owe to each place, to first order.

    With s = log p_c / (1 - p_c), and x_l (C, h, w) the feature maps of level l that are pooled,

        M_l[u] = sum_k x_l[k, u] ds / dx_l[k, u],

    which is how much s would fall if nothing were seen at u; negative where it would rise. The maps
    of all levels are enlarged to the image and added. Features of several levels are shares of a
    whole (`level_features`), so each map adds up to 0: it says where the class is seen rather than
    elsewhere, not how well.

    Args:
        classifier: the merged network and its head.
        images: (B, 3, H, S) RGB pixels in 0..255.
        classes: (B,) the class of each map.

    Returns:
        (B, H, S) on the CPU: log-odds for each hundredth of the image's, or the slice's, area.

    Raises:
        ConfigError: the network gives no maps: features from a class token, or a layer of a
            transformer.

    Source: HiResCAM (arXiv 2011.08891), of log-odds instead of a logit and at several levels.
    """
    network = classifier.network
    with torch.no_grad():
        maps = _maps(network, images)
    maps = [feature_map.requires_grad_() for feature_map in maps]
    with torch.enable_grad():
        logits = classifier.logits(_pooled(network, maps))
        rows = torch.arange(len(logits))
        own = logits[rows, classes]
        others = logits.index_put((rows, classes), torch.tensor(-torch.inf)).logsumexp(1)
        gradients = torch.autograd.grad((own - others).sum(), maps)
    side = images.shape[-1]
    total = torch.zeros(len(maps[0]), side, side)
    for feature_map, gradient in zip(maps, gradients, strict=True):
        parts = (feature_map * gradient).sum(1, keepdim=True).detach()
        per_hundredth = parts * parts[0].numel() / 100
        large = functional.interpolate(per_hundredth, total.shape[-2:], mode="bilinear")
        total += large[:, 0].cpu()
    return total.view(images.shape[0], *images.shape[2:])


def heat_map(predictor: Predictor, picture: Pixels, label: str) -> NDArray[np.float32]:
    """(H, S): `heat_maps` of one image (H, S, 3) and a class that the model knows."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(predictor.device)
    place = torch.tensor([predictor.classes.index(label)])
    found: NDArray[np.float32] = heat_maps(predictor.model, pixels, place)[0].numpy()
    return found


def explained(predictor: Predictor, image: Source, label: str) -> bytes:
    """An image's heat map as a PNG, of a volume a sheet of them, over a grey copy of it: red speaks
    for the class, blue against it; the strongest of either has the full colour.

    Args:
        predictor: the model.
        image: as `load_image` takes it.
        label: a class that it knows.

    Raises:
        ConfigError: see `heat_maps`.
    """
    picture = load_image(image, predictor.form)
    heat = heat_map(predictor, picture, label)
    opaque = (np.abs(heat) / max(float(np.abs(heat).max()), 1e-12))[..., None]
    colour = np.where(heat[..., None] > 0, (255, 0, 0), (0, 0, 255))
    drawn = opaque * colour + (1 - opaque) * picture.mean(axis=2, keepdims=True)
    file = BytesIO()
    Image.fromarray(sheet(drawn.round().astype(np.uint8))).save(file, "PNG")
    return file.getvalue()


def _maps(network: Network, images: Tensor) -> list[Tensor]:
    """The feature maps that `_pooled` makes features of."""
    pixels = network.normalised(images)
    if network.signed is not None:
        maps = intermediate_maps(network.backbone, pixels, len(network.signed))
    else:
        backbone: Any = network.backbone
        maps = [backbone.forward_features(pixels)] if hasattr(backbone, "forward_head") else []
    if not maps or any(one.dim() != 4 or one.shape[-1] == 1 for one in maps):
        raise ConfigError(
            ["no heat map: this network's features are not the mean of a map; of a CNN they are"]
        )
    return maps


def _pooled(network: Network, maps: list[Tensor]) -> Tensor:
    if network.signed is not None:
        return network.of_volumes(level_features(maps, network.signed))
    backbone: Any = network.backbone
    features: Tensor = backbone.forward_head(maps[0], pre_logits=True)
    return network.of_volumes(features)
