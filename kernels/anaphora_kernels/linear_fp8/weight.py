"""Where FP8 weights live, and how rows of a checkpoint get there."""

from typing import Final

import torch
from torch import Tensor

from anaphora_kernels.quantize_fp8 import quantize_fp8

MULTIPLE: Final = 16  # of both sizes: what the products ask for


class MixedFormatsError(ValueError):
    """Some of the products that are computed as one are in FP8, and others are not."""


class Fp8Weight:
    """A weight [out_features, in_features], filled a stretch of rows at a time.

    Its first rows decide what it is. FP8 rows make it FP8. Rows of floats become FP8 too, with a scale per row; or,
    with `keeps_floats`, the weight stays a matrix of `dtype`: a checkpoint in FP8 has left that product alone. Rows of
    both kinds in one weight are refused.
    """

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device, *, keeps_floats: bool
    ) -> None:
        """No rows yet, and no memory. Sizes that no FP8 product takes make it a matrix of `dtype`."""
        self.shape = (out_features, in_features)
        self.dtype = dtype
        self.device = device
        self.keeps_floats = keeps_floats
        self.takes_fp8 = out_features % MULTIPLE == 0 and in_features % MULTIPLE == 0
        self.values = torch.empty(0)  # [out, in], once there are rows
        self.scales: Tensor | None = None  # [out] float32; None: values are not FP8
        self.input_scale: Tensor | None = None  # [] float32; None: activations have a scale per token

    def __getitem__(self, rows: slice) -> "Fp8Rows":
        """Where consecutive rows go."""
        start, stop, _ = rows.indices(self.shape[0])
        return Fp8Rows(self, start, stop - start)

    def allocate(self, *, is_fp8: bool) -> None:
        """Memory, unless there is some. Raises MixedFormatsError if that is of the other kind."""
        if self.values.numel() == 0:
            self.values = torch.empty(
                self.shape, dtype=torch.float8_e4m3fn if is_fp8 else self.dtype, device=self.device
            )
            self.scales = torch.empty(self.shape[0], dtype=torch.float32, device=self.device) if is_fp8 else None
        if is_fp8 != (self.scales is not None):
            raise MixedFormatsError("some of the products that are computed as one are in FP8, and others are not")


class Fp8Rows:
    """A stretch of such a weight, to be filled."""

    def __init__(self, weight: Fp8Weight, start: int, count: int) -> None:
        """Rows [start, start + count)."""
        self.weight = weight
        self.start = start
        self.shape = (count, weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self.weight.device

    @property
    def format(self) -> str:
        """What these rows are held as, once they are filled."""
        return "fp8_e4m3" if self.weight.scales is not None else str(self.weight.dtype).removeprefix("torch.")

    @property
    def takes_fp8(self) -> bool:
        """Whether FP8 rows can stay FP8."""
        return self.weight.takes_fp8

    def pack(self, values: Tensor) -> None:
        """From floats of any dtype, [count, in_features]."""
        weight = self.weight
        is_fp8 = weight.takes_fp8 and not weight.keeps_floats
        weight.allocate(is_fp8=is_fp8)
        if is_fp8:
            rounded, scales = quantize_fp8(values.to(weight.device))
            self._fill(rounded, scales.flatten())
        else:
            self._rows(weight.values).copy_(values)

    def pack_fp8(self, values: Tensor, scales: Tensor, input_scale: Tensor | None) -> None:
        """From FP8 values [count, in_features] with scales [] or [count]; `input_scale` [] of static activations.

        Products that are computed as one have one input: the largest of their scales is taken, as they should be equal.
        """
        self.weight.allocate(is_fp8=True)
        self._fill(values, scales.float())
        if input_scale is not None:
            given, before = input_scale.float().to(self.device), self.weight.input_scale
            self.weight.input_scale = given if before is None else torch.maximum(before, given)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the rows stand for: [count, in_features]."""
        values = self._rows(self.weight.values).float()
        if self.weight.scales is not None:
            values = values * self._rows(self.weight.scales).unsqueeze(1)
        return values.to(dtype)

    def _fill(self, values: Tensor, scales: Tensor) -> None:
        if self.weight.scales is not None:
            self._rows(self.weight.values).copy_(values)
            self._rows(self.weight.scales).copy_(scales)

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor[self.start : self.start + self.shape[0]]
