"""Where a layer's parameters live, and how the tensors of a checkpoint get into them."""

from dataclasses import dataclass

import torch
from anaphora_kernels.linear.cpu import PackedRows, PackedWeight
from torch import Tensor

from anaphora.parallel import ParallelGroup
from anaphora.quantized import QuantizedTensor


@dataclass(frozen=True)
class Placement:
    """Where and how the parameters of a model are held; every layer is built with one."""

    group: ParallelGroup
    dtype: torch.dtype
    device: torch.device
    quantize: str = "none"  # "gguf": blocks stay as they are; "int8": weights become bytes. On a CPU

    def weight(self, out_features: int, in_features: int) -> Tensor | PackedWeight:
        """Memory for a matrix that activations are multiplied with: packed, where there are kernels for that."""
        if self.device.type != "cpu" or self.dtype == torch.float16:
            return self.empty(out_features, in_features)
        floats = "q8_0" if self.quantize == "int8" else str(self.dtype).removeprefix("torch.")
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
    destination: Tensor | PackedRows
    dim: int = 0
    start: int = 0
    offset: float = 0.0  # added to what the checkpoint holds
    random_mean: float = 0.0  # around which dummy weights are drawn

    def load(self, tensor: Tensor | QuantizedTensor) -> None:
        """Takes this rank's share of the checkpoint's tensor, in the form that the parameter is held in."""
        size = self.destination.shape[self.dim]
        start = min(self.start, self.shape[self.dim])
        length = min(size, self.shape[self.dim] - start)
        if isinstance(tensor, QuantizedTensor):
            if self._pack_blocks(tensor, start, length):
                return
            tensor = tensor.dequantize()
        share = tensor.narrow(self.dim, start, length)
        if isinstance(self.destination, PackedRows):
            self.destination.pack(share)
            return
        self.destination.narrow(self.dim, 0, length).copy_(share)
        if self.offset:
            self.destination.add_(self.offset)
        self.destination.narrow(self.dim, length, size - length).zero_()

    def _pack_blocks(self, tensor: QuantizedTensor, start: int, length: int) -> bool:
        """Whether this rank's share stays in its blocks, and was packed as it is."""
        to = self.destination
        if isinstance(to, Tensor) or not to.keeps(tensor.kind) or length < to.shape[self.dim]:
            return False
        share = tensor.narrow(self.dim, start, length)
        if share is None:
            return False
        to.pack_blocks(share.blocks, share.kind)
        return True
