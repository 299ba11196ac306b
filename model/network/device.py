"""Which device, and which arithmetic on it."""

from __future__ import annotations

from typing import TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU; or a device by its torch name.

    Raises:
        ValueError: no such device, or CUDA was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is '{name}'; expected auto, cpu, cuda or a torch device name") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is '{name}', but torch {torch.__version__} sees no CUDA device; use cpu or auto")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions are a gain here: any GPU since Ampere, a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """What the setting ``precision`` ("auto", "fp32", "bf16") means on a device."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def full_precision(device: torch.device) -> torch.autocast:
    """The context that takes a part of the model out of autocast, whatever surrounds it."""
    return torch.autocast(device.type, enabled=False)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a precision on a device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))


def channels_last(network: Network, device: torch.device) -> Network:
    """A network moved to a device, its convolutions laid out channels last."""
    moved = network.to(device)
    moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
