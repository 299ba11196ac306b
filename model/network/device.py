"""The device that a model runs on, and its arithmetic."""

from __future__ import annotations

from typing import TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)


def pick_device(name: str) -> torch.device:
    """Return the device of a torch name; "auto" is CUDA if present, else the CPU.

    Raises:
        ValueError: there is no such device.
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
    """Return whether bf16 speeds up convolutions: a GPU since Ampere, a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context for the setting ``precision``: "fp32", "bf16", or "auto", bf16 where it is fast."""
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context that disables a surrounding autocast."""
    return torch.autocast(device.type, enabled=False)


def channels_last(network: Network, device: torch.device) -> Network:
    """Move a network to a device, with its convolutions laid out channels last."""
    moved = network.to(device)
    moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
