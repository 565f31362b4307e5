"""Rotary position embedding: frequencies, what scales them for long contexts, and the angles of a step.

The angles are worked out from the positions of each step, in float32, and shared by all layers: no table that grows
with the context.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]
"""Cosines and sines, [T, head_dim / 2] each."""


class RopeScaling(Protocol):
    """A rule that changes frequencies so that positions beyond the pre-training length make sense."""

    def scale(self, frequencies: Tensor) -> Tensor:
        """[head_dim / 2] float32 radians per position -> the same, scaled."""
        ...


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, https://arxiv.org/abs/2306.15595)."""

    factor: float

    def scale(self, frequencies: Tensor) -> Tensor:
        """All frequencies alike."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: long wavelengths are interpolated, short ones kept, and those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int  # tokens: the pre-training length

    def scale(self, frequencies: Tensor) -> Tensor:
        """By how often each frequency turns within the pre-training length."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclass(frozen=True)
class FactorScaling:
    """One divisor per frequency, as GGUF files carry in `rope_freqs.weight`."""

    factors: tuple[float, ...]  # [head_dim / 2]

    def scale(self, frequencies: Tensor) -> Tensor:
        """Each by its own divisor."""
        return frequencies / torch.tensor(self.factors, dtype=frequencies.dtype)


class RotaryEmbedding:
    """Turns positions into angles."""

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> None:
        """`theta` is the base of the geometric series of frequencies."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / theta**exponents
        self.frequencies = (scaling.scale(frequencies) if scaling else frequencies).to(device)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """The angles of positions [T]."""
        angles = positions.to(torch.float32).unsqueeze(1) * self.frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)
