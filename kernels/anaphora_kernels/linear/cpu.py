"""linear on a CPU, by `kernels/native`: weights are repacked once, and multiplied in the form that they are held in.

What a row of x becomes does not depend on the rows beside it, to the last bit; but with quantised weights on a machine
with matrix tiles (AMX), it does on whether they are few or many: see `kernels/native/src/linear/mod.rs`.
"""

from collections.abc import Mapping
from typing import Final

import torch
from anaphora import _native
from torch import Tensor

from anaphora_kernels.recording import empty

DTYPES: Final[Mapping[torch.dtype, int]] = {torch.float32: 0, torch.bfloat16: 1}  # of tensors: numbers of `_native`
BLOCK_COLUMNS: Final[Mapping[int, int]] = {2: 32, 3: 32, 8: 32, 12: 256, 14: 256}  # of a block, by GGUF type


def floats_format(dtype: torch.dtype) -> str:
    """The format in which this processor multiplies weights of `dtype` (float32 or bfloat16) fastest.

    For bfloat16 it is "int16" on processors with AVX2 or AVX-512, but neither AMX nor fast products of bfloat16. Many
    rows are multiplied 1.1 (plain AVX-512) to 1.7 times (with VNNI) as fast as with floats, and what it rounds is less
    than what activations lose in bfloat16.
    """
    return _native.PackedWeight.bfloat16_format() if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


class PackedWeight:
    """A weight [out_features, in_features] in memory of its own, in panels that the CPU reads fastest.

    Rows are packed a stretch at a time, in any order, and stretches may differ in format:

        "float32", "bfloat16"           floats; a bfloat16 is multiplied as the float that it is
        "int16"                         integers with a scale for the row: see `floats_format`
        "q8_0"                          bytes, 32 to a scale: quantised here, or GGUF's Q8_0
        "q4_0", "q4_1", "q6_k"          GGUF's Q4_0; Q4_1 and Q4_K; Q6_K

    With "int16", x is rounded to such integers too, 64 to a scale. With bytes and less, to bytes, 32 to a scale; many
    rows of bfloat16 are not, on AMX.
    """

    def __init__(
        self, out_features: int, in_features: int, floats_as: str = "float32", *, keeps_blocks: bool = False
    ) -> None:
        """No rows yet. `floats_as` ("float32", "bfloat16", "int16" or "q8_0") is what rows of floats become.

        `keeps_blocks`: whether rows should be packed from GGUF's blocks, where they come so.
        """
        self.shape = (out_features, in_features)
        self.floats_as = floats_as
        self.keeps_blocks = keeps_blocks
        self.native = _native.PackedWeight(out_features, in_features)

    def __getitem__(self, rows: slice) -> "PackedRows":
        """Where consecutive rows go."""
        start, stop, _ = rows.indices(self.shape[0])
        return PackedRows(self, start, stop - start)

    @property
    def formats(self) -> list[str]:
        """Of the rows packed so far, each once."""
        return self.native.formats

    @property
    def num_bytes(self) -> int:
        """Memory of the rows packed so far."""
        return self.native.num_bytes


class PackedRows:
    """A stretch of a packed weight's rows, to be filled."""

    device: Final = torch.device("cpu")

    def __init__(self, weight: PackedWeight, start: int, count: int) -> None:
        """Rows [start, start + count)."""
        self.weight = weight
        self.start = start
        self.shape = (count, weight.shape[1])

    @property
    def format(self) -> str:
        """Of these rows, once they are packed."""
        return self.weight.native.format_of(self.start)

    def keeps(self, kind: int) -> bool:
        """Whether GGUF blocks of this type are to be packed as they are."""
        return self.weight.keeps_blocks and kind in BLOCK_COLUMNS and self.shape[1] % BLOCK_COLUMNS[kind] == 0

    def pack(self, values: Tensor) -> None:
        """From floats of any dtype, [at most count, in_features]; rows that are not given become zero."""
        dtype = values.dtype if values.dtype in DTYPES else torch.float32
        values = values.to(dtype)
        if len(values) < self.shape[0]:
            values = torch.nn.functional.pad(values, (0, 0, 0, self.shape[0] - len(values)))
        values = values.contiguous()
        native, floats_as = self.weight.native, self.weight.floats_as
        native.pack_floats(self.start, len(values), values.data_ptr(), DTYPES[dtype], floats_as)

    def pack_blocks(self, blocks: Tensor, kind: int) -> None:
        """From GGUF blocks of a type in BLOCK_COLUMNS, [count, bytes of a row] uint8."""
        blocks = blocks.contiguous()
        self.weight.native.pack_blocks(self.start, blocks.data_ptr(), blocks.numel(), kind)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the rows stand for: [count, in_features]."""
        indices = torch.arange(self.start, self.start + self.shape[0])
        out = torch.empty(self.shape, dtype=dtype)
        self.weight.native.unpack_rows(len(indices), indices.data_ptr(), out.data_ptr(), DTYPES[dtype])
        return out


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """See `anaphora_kernels.linear`."""
    x = x.contiguous()
    out = empty((len(x), weight.shape[0]), x.dtype)
    tensors = (x.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr())
    weight.native.linear(len(x), tensors, DTYPES[x.dtype])
    return out
