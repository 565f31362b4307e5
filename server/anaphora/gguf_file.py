"""Reading a GGUF file: the header by hand, the quantised formats by the `gguf` package.

    "GGUF" version num_tensors num_entries | metadata entries | tensor table | padding | data, each tensor aligned

The package's own reader makes several numpy arrays for every string of the vocabulary, which takes seconds; a shard
needs no vocabulary, so arrays of strings are stepped over. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from anaphora_kernels.linear.cpu import BLOCK_COLUMNS
from numpy.typing import NDArray
from torch import Tensor

from anaphora.errors import ModelFileError
from anaphora.quantized import QuantizedTensor, dequantize

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # type id -> struct
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table."""

    shape: tuple[int, ...]  # as torch has it: slowest dimension first, the reverse of the file's order
    quantization: gguf.GGMLQuantizationType
    offset: int  # bytes from the start of the file
    num_bytes: int


class GgufFile:
    """`metadata` (arrays of strings left out), `tensors` by name, and `read`. The file stays mapped meanwhile."""

    def __init__(self, path: Path) -> None:
        """Reads the header. Raises ModelFileError for what is not a whole GGUF file."""
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read: {error}") from error
        self._position = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path} is not a whole GGUF file: its header is damaged ({error})") from error

    def read(self, name: str) -> Tensor:
        """A tensor, dequantised to float32. Raises ModelFileError for a format that the `gguf` package cannot."""
        tensor = self.tensors[name]
        try:
            return dequantize(self._blocks(tensor), tensor.quantization).view(tensor.shape)
        except NotImplementedError as error:
            raise ModelFileError(
                f"{self.path}: tensor {name} is {tensor.quantization.name}, which cannot be read"
            ) from error

    def read_blocks(self, name: str) -> QuantizedTensor | None:
        """A tensor as it is; None for what is not a matrix, or not of blocks that can be multiplied as they are."""
        tensor = self.tensors[name]
        if len(tensor.shape) != 2 or tensor.quantization not in BLOCK_COLUMNS:
            return None
        return QuantizedTensor(torch.from_numpy(self._blocks(tensor).copy()), tensor.quantization)

    def _blocks(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """[..., bytes of a row], in the file's mapped memory."""
        raw = np.frombuffer(self.data, dtype=np.uint8, count=tensor.num_bytes, offset=tensor.offset)
        return raw.reshape(*tensor.shape[:-1], -1)

    # === the header ===

    def _read_header(self) -> None:
        magic, version, num_tensors, num_entries = self._unpack("4sIQQ")
        if magic != b"GGUF":
            raise ModelFileError(f"{self.path} is not a GGUF file: it starts with {magic!r}")
        if version not in (2, 3):
            raise ModelFileError(f"{self.path} is GGUF version {version}; versions 2 and 3 (little-endian) can be read")
        for _ in range(num_entries):
            key = self._string()
            (kind,) = self._unpack("I")
            self.metadata[key] = self._value(kind)
        table = [self._table_row() for _ in range(num_tensors)]
        alignment = int(self.metadata.get("general.alignment", 32))
        start = -(-self._position // alignment) * alignment
        for name, shape, quantization, offset in table:
            self.tensors[name] = self._place(name, shape, quantization, start + offset)

    def _table_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._unpack("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ModelFileError(f"{self.path}: tensor {name} has {dimensions} dimensions; its header is damaged")
        shape = self._unpack(f"{dimensions}Q")
        quantization, offset = self._unpack("IQ")
        return name, tuple(reversed(shape)), quantization, offset

    def _place(self, name: str, shape: tuple[int, ...], quantization: int, offset: int) -> GgufTensor:
        try:
            kind = gguf.GGMLQuantizationType(quantization)
        except ValueError as error:
            raise ModelFileError(f"{self.path}: tensor {name} has the unknown type {quantization}") from error
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block_elements:
            raise ModelFileError(f"{self.path}: tensor {name} of shape {shape} cannot be {kind.name}")
        num_bytes = prod(shape) // block_elements * block_bytes
        if offset + num_bytes > len(self.data):
            raise ModelFileError(
                f"{self.path} is truncated: tensor {name} ends at byte {offset + num_bytes:,} "
                f"and the file has {len(self.data):,}"
            )
        return GgufTensor(shape, kind, offset, num_bytes)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        compiled = struct.Struct("<" + layout)
        values = compiled.unpack_from(self.data, self._position)
        self._position += compiled.size
        return values

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        (raw,) = self._unpack(f"{min(length, len(self.data))}s")
        text: str = raw.decode("utf-8")
        return text

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._unpack("IQ")
            if element in _SCALARS:
                return self._unpack(f"{min(count, len(self.data))}{_SCALARS[element]}")
            if element == _STRING:
                self._skip_strings(count)
                return None
        raise ModelFileError(f"{self.path}: metadata of unknown type {kind}; its header is damaged")

    def _skip_strings(self, count: int) -> None:
        length_of = struct.Struct("<Q").unpack_from
        position = self._position
        for _ in range(count):
            position += 8 + length_of(self.data, position)[0]
        self._position = position
