"""Calibrate whether a picture shows the category, with training pictures and pictures made from them without it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from .data import GREY, Images, iterate_batches, to_tensor
from .network.blocks import autocast
from .network.links import link_map
from .network.pose_prior_learner import PosePriorLearner
from .predictor import join_evidence
from .scoring.presence import Presence
from .training.zoom import crop_pictures

Evidence = NDArray[np.float64]

_PICTURES = 256  # training pictures
_ABSENT = 48  # made pictures of each kind
_MIN_PICTURES = 16
_BATCH_SIZE = 64
_PAINTED_WIDTH = 0.07  # sigma squared of the painted links


@torch.inference_mode()
def calibrate_presence(model: PosePriorLearner, images: Images) -> Presence | None:
    """Fit to up to 256 of the training pictures, uint8 (N, S, S, 3); None if they are fewer than 16."""
    if len(images) < _MIN_PICTURES:
        return None
    model.eval()
    chosen = np.linspace(0, len(images) - 1, min(_PICTURES, len(images))).round().astype(int)
    pictures = np.ascontiguousarray(images[chosen])
    present = collect_evidence(model, pictures)
    # an estimate crops whatever comes to what is most like the thing
    absent = crop_pictures(model, make_absent(model, pictures, np.random.default_rng(0)))
    return Presence.fit(present, collect_evidence(model, absent))


@torch.inference_mode()
def collect_evidence(model: PosePriorLearner, images: Images) -> Evidence:
    """Return the evidence (N, 3 + D) of pictures, as :class:`Presence` takes it."""
    device, found = model.link_logits.device, []
    for batch in iterate_batches(images, _BATCH_SIZE):
        with autocast(model.config.precision, device):
            located = model.locate(to_tensor(batch, device), evidence=True)
        found.append(join_evidence(model, located.keypoints, located.evidence))
    return np.concatenate(found)


def make_absent(model: PosePriorLearner, images: Images, rng: np.random.Generator) -> Images:
    """Make pictures without the thing: noise, shuffled, hidden, a corner enlarged, and the thing painted out."""
    some = np.resize(np.arange(len(images)), _ABSENT)
    noise = [_noise(images[i], rng) for i in some]
    shuffled = [_shuffle(images[i], (4, 8)[i % 2], rng) for i in some]
    hidden = [_hide(images[i], rng) for i in some]
    corners = [_enlarge_corner(images[i], rng) for i in some]
    return np.concatenate((np.stack(noise + shuffled + hidden + corners), _paint_out(model, images[some], rng)))


def _noise(image: Images, rng: np.random.Generator) -> Images:
    """Draw noise of a random grain, in the colours of a picture."""
    side = len(image)
    grain = rng.normal(size=(2 ** int(rng.integers(1, int(np.log2(side)) + 1)),) * 2 + (3,))
    how = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.NEAREST
    channels = [Image.fromarray(grain[..., c].astype(np.float32)).resize((side, side), how) for c in range(3)]
    values = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    spread = image.std((0, 1)) * rng.uniform(0.5, 1.5) / (values.std((0, 1)) + 1e-6)
    noise: Images = (values * spread + image.mean((0, 1))).clip(0, 255).astype(np.uint8)
    return noise


def _shuffle(image: Images, parts: int, rng: np.random.Generator) -> Images:
    side = len(image) // parts
    tiles = (
        image[: side * parts, : side * parts]
        .reshape(parts, side, parts, side, 3)
        .swapaxes(1, 2)
        .reshape(-1, side, side, 3)
    )
    mixed = rng.permutation(tiles).reshape(parts, parts, side, side, 3).swapaxes(1, 2)
    out = image.copy()
    out[: side * parts, : side * parts] = mixed.reshape(side * parts, side * parts, 3)
    return out


def _hide(image: Images, rng: np.random.Generator) -> Images:
    """Cover most of a picture by a square of its mean colour or of grey."""
    side = int(len(image) * rng.uniform(0.6, 0.95))
    y, x = rng.integers(0, len(image) - side + 1, 2)
    out = image.copy()
    out[y : y + side, x : x + side] = image.mean((0, 1)) if rng.random() < 0.5 else GREY
    return out


def _enlarge_corner(image: Images, rng: np.random.Generator) -> Images:
    side, part = len(image), int(len(image) * rng.uniform(0.12, 0.3))
    y, x = rng.integers(0, 2, 2) * (side - part)
    corner = Image.fromarray(np.ascontiguousarray(image[y : y + part, x : x + part]))
    return np.asarray(corner.resize((side, side), Image.Resampling.BILINEAR))


def _paint_out(model: PosePriorLearner, images: Images, rng: np.random.Generator) -> Images:
    """Fill what lies between a picture's keypoints from around it, coarse to fine, with a little grain."""
    picture = to_tensor(images, model.link_logits.device)
    with autocast(model.config.precision, picture.device):
        keypoints = model.locate(picture).keypoints.float()
    every = torch.ones(model.config.num_links, device=picture.device)
    keep = (link_map(keypoints, every, _PAINTED_WIDTH, picture.shape[-1]) < 0.5).float()
    levels = [(picture * keep, keep)]
    while (side := levels[-1][0].shape[-1]) > 1:
        levels.append(tuple(functional.adaptive_avg_pool2d(part, (side + 1) // 2) for part in levels[-1]))  # type: ignore[arg-type]
    filled = torch.zeros_like(levels[-1][0])
    for values, known in reversed(levels):
        coarse = functional.interpolate(filled, size=values.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(known > 0.5, values / known.clamp_min(1e-6), coarse)
    grain = torch.from_numpy(rng.normal(scale=0.05, size=filled.shape)).to(filled)
    out = (filled + (1 - keep) * grain).clamp(-1, 1)
    return ((out + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
