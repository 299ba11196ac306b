"""Draw what a model has learned so far: training pictures with their poses and reconstructions, and the prior."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .data import Clips, Images, mask_patches, step_generator, to_pixels, to_tensor
from .network.blocks import autocast, shrink
from .network.links import connectivity_matrix, link_lengths
from .network.pose_prior_learner import PosePriorLearner
from .version.palette import keypoint_rgb
from .version.skeleton import choose_links

PICTURES = 16
_COLUMNS = 4  # of pairs: a picture with its pose, and its reconstruction
_TILE_PX, _GAP_PX = 128, 4
_FINER = 2  # drawn at this scale and reduced, for smooth lines
_LEAST_STRENGTH = 0.3  # thinner links can't be seen


@torch.inference_mode()
def draw_preview(model: PosePriorLearner, images: Images, clips: Clips | None = None) -> Image.Image:
    """Draw pairs of a picture with its pose and its reconstruction, and at their right the prior.

    Args:
        model: left in eval mode.
        images: the training pictures, uint8 (N, S, S, 3); up to 16 evenly spaced ones are drawn.
        clips: of the pictures; references are other frames of them.
    """
    model.eval()
    chosen = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(np.int64)
    config, device = model.config, model.link_logits.device
    pictures, generator = to_tensor(images[chosen], device), step_generator(0, "preview", 0)
    if clips is None:
        reference = mask_patches(shrink(pictures, config.side), config.mask_ratio, config.mask_grid, generator)
    else:
        reference = shrink(to_tensor(images[clips.draw_other_frames(chosen, generator)], device), config.side)
    with autocast(model.config.precision, device):
        poses = model.locate(pictures).keypoints.float()
        rebuilt = to_pixels(model.reconstructor(reference, model.draw(poses, pictures)))
    links = _skeleton(model, poses)
    pitch, rows = _TILE_PX + _GAP_PX, -(-len(chosen) // _COLUMNS)
    side = max(2, rows) * pitch - _GAP_PX  # of the prior
    sheet = Image.new("RGB", (2 * _COLUMNS * pitch + side, side), "white")
    for number, index in enumerate(chosen):
        row, column = divmod(number, _COLUMNS)
        posed = _draw_pose(Image.fromarray(images[index]), poses[number], links, _TILE_PX)
        sheet.paste(posed, (2 * column * pitch, row * pitch))
        plain = Image.fromarray(rebuilt[number]).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
        sheet.paste(plain, ((2 * column + 1) * pitch, row * pitch))
    prior = model.keypoint_prior()
    typical = poses.mean(0) if prior is None else prior.float()  # AutoLink has no prior
    ground = Image.new("RGB", (1, 1), (13, 15, 33))
    sheet.paste(_draw_pose(ground, typical, links, side), (2 * _COLUMNS * pitch, 0))
    return sheet


def _skeleton(model: PosePriorLearner, poses: Tensor) -> list[tuple[int, int, float]]:
    """Return the links to draw as keypoints and strength, at most 1, the weakest first."""
    weights, lengths = model.link_weights.float().cpu(), link_lengths(poses).mean(0).cpu()
    matrix = connectivity_matrix(weights / weights.max().clamp_min(1e-12)).tolist()
    chosen = choose_links(lengths.tolist(), weights.tolist(), model.config.num_keypoints)
    return [(i, j, max(matrix[i][j], _LEAST_STRENGTH)) for i, j in reversed(chosen)]


def _draw_pose(picture: Image.Image, pose: Tensor, links: list[tuple[int, int, float]], side: int) -> Image.Image:
    fine = side * _FINER
    canvas = picture.resize((fine, fine), Image.Resampling.BICUBIC)
    points = [(x, y) for x, y in ((pose.cpu() + 1) / 2 * fine).tolist()]
    draw = ImageDraw.Draw(canvas)
    for a, b, strength in links:
        draw.line((*points[a], *points[b]), keypoint_rgb(a), max(2, round(fine * 0.02 * strength)))
    radius = fine * 0.016
    for number, (x, y) in enumerate(points):
        draw.circle((x, y), radius, keypoint_rgb(number), (16, 18, 24), max(1, round(radius / 4)))
    return canvas.resize((side, side), Image.Resampling.LANCZOS)
