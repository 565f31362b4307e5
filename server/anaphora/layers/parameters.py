"""Where a layer's parameters live, and how the tensors of a checkpoint get into them."""

import math
from dataclasses import dataclass

import torch
from anaphora_kernels.linear.cpu import PackedRows, PackedWeight, floats_format
from anaphora_kernels.linear_fp8 import Fp8Rows, Fp8Weight
from torch import Tensor

from anaphora.fp8_checkpoint import Fp8Tensor
from anaphora.parallel import ParallelGroup
from anaphora.quantized import QuantizedTensor

Weight = Tensor | PackedWeight | Fp8Weight
"""A matrix that activations are multiplied with; see `anaphora_kernels.linear`."""
StoredTensor = Tensor | QuantizedTensor | Fp8Tensor
"""A tensor in the form that a checkpoint holds it in."""


@dataclass(frozen=True)
class Placement:
    """Where and how the parameters of a model are held; every layer is built with one."""

    group: ParallelGroup
    dtype: torch.dtype
    device: torch.device
    quantize: str = "none"  # on a CPU "gguf": blocks stay as they are, "int8": weights become bytes; on a GPU "fp8"
    keeps_floats: bool = False  # with "fp8": what the checkpoint has in floats stays so

    def weight(self, out_features: int, in_features: int) -> Weight:
        """Memory for a matrix that activations are multiplied with: in the form that the device likes best."""
        if self.quantize == "fp8":
            return Fp8Weight(out_features, in_features, self.dtype, self.device, keeps_floats=self.keeps_floats)
        return self.vocab_weight(out_features, in_features)

    def vocab_weight(self, out_features: int, in_features: int) -> Tensor | PackedWeight:
        """The same for an embedding or a head, which FP8 leaves alone."""
        if self.device.type != "cpu" or self.dtype == torch.float16:
            return self.empty(out_features, in_features)
        floats = "q8_0" if self.quantize == "int8" else floats_format(self.dtype)
        return PackedWeight(out_features, in_features, floats, keeps_blocks=self.quantize == "gguf")

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for a parameter, not initialised; of the model's dtype unless another is given."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)


@dataclass(frozen=True)
class Part:
    """One tensor of a checkpoint: its shape there, and where this rank's share of it goes.

        checkpoint   [ ... | start .............. | ... ]   along `dim`
        destination        [ destination.shape[dim] ]       a view into a parameter, or rows of a packed one

    The share of the last rank may be shorter than its destination; the rest is filled with zeros.
    """

    shape: tuple[int, ...]
    destination: Tensor | PackedRows | Fp8Rows
    dim: int = 0
    start: int = 0
    offset: float = 0.0  # added to what the checkpoint holds
    random_mean: float = 0.0  # around which dummy weights are drawn
    is_optional: bool = False  # a checkpoint may lack it, or have one number for all

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a checkpoint's tensor of this shape can be loaded."""
        return shape == self.shape or (self.is_optional and math.prod(shape) == 1)

    def load(self, tensor: StoredTensor) -> None:
        """Takes this rank's share of the checkpoint's tensor, in the form that the parameter is held in."""
        size = self.destination.shape[self.dim]
        start = min(self.start, self.shape[self.dim])
        length = min(size, self.shape[self.dim] - start)
        if isinstance(tensor, QuantizedTensor):
            if self._pack_blocks(tensor, start, length):
                return
            tensor = tensor.dequantize()
        if isinstance(tensor, Fp8Tensor):
            if isinstance(self.destination, Fp8Rows) and self.destination.takes_fp8:
                tensor.pack(self.destination, self.dim, start, length)
                return
            tensor = tensor.dequantize()
        if self.is_optional:
            tensor = tensor.expand(self.shape)
        share = tensor.narrow(self.dim, start, length)
        if not isinstance(self.destination, Tensor):
            self.destination.pack(share)
            return
        self.destination.narrow(self.dim, 0, length).copy_(share)
        if self.offset:
            self.destination.add_(self.offset)
        self.destination.narrow(self.dim, length, size - length).zero_()

    def _pack_blocks(self, tensor: QuantizedTensor, start: int, length: int) -> bool:
        """Whether this rank's share stays in its blocks, and was packed as it is."""
        to = self.destination
        if not isinstance(to, PackedRows) or not to.keeps(tensor.kind) or length < to.shape[self.dim]:
            return False
        share = tensor.narrow(self.dim, start, length)
        if share is None:
            return False
        to.pack_blocks(share.blocks, share.kind)
        return True
