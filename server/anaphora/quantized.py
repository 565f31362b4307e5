"""A tensor of a GGUF file in the blocks that it is stored in."""

from dataclasses import dataclass

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix [rows, columns] whose rows are blocks of quantised columns."""

    blocks: Tensor  # [rows, bytes of a row] uint8
    kind: gguf.GGMLQuantizationType

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, columns]."""
        block_columns, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        rows, row_bytes = self.blocks.shape
        return rows, row_bytes // block_bytes * block_columns

    def narrow(self, dim: int, start: int, length: int) -> "QuantizedTensor | None":
        """As `Tensor.narrow`; None if that would cut blocks apart."""
        block_columns, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        if dim == 1:
            if start % block_columns or length % block_columns:
                return None
            start, length = start // block_columns * block_bytes, length // block_columns * block_bytes
        return QuantizedTensor(self.blocks.narrow(dim, start, length), self.kind)

    def dequantize(self) -> Tensor:
        """What the blocks stand for: float32, in memory of its own."""
        return dequantize(self.blocks.numpy(), self.kind)


def dequantize(blocks: NDArray[np.uint8], kind: gguf.GGMLQuantizationType) -> Tensor:
    """Blocks [..., bytes of a row] uint8 -> float32. Raises NotImplementedError for types that `gguf` cannot read."""
    values: NDArray[np.float32] = gguf.quants.dequantize(blocks, kind)
    # A float32 tensor may still be the mapped, read-only memory; torch must not be handed that as if it could write.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
