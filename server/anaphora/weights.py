"""From the tensors of a checkpoint to the parameters of a model, one at a time.

    source.table                 name -> shape and dtype, from headers alone
    check(source, parts)         all that the model needs is there, in its shape, and nothing else; before any is read
    load(source, parts)          read, take this rank's share, convert, copy

Names and shapes are the model's (`parts()`); this file knows none. Files are mapped and read in their own order, so
that the most memory in use is the parameters and one tensor.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import gguf
import torch
from anaphora_kernels.linear_fp8 import MixedFormatsError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anaphora.errors import (
    MissingTensorError,
    ModelFileError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedModelError,
)
from anaphora.fp8_checkpoint import FP8, UNUSED_SCALES, Fp8Activations, Fp8Tensor, canonical_name
from anaphora.gguf_file import GgufFile
from anaphora.layers.parameters import Part, StoredTensor
from anaphora.quantized import QuantizedTensor

Progress = Callable[[int, int], None]  # (tensors done, tensors in all)
_NAMED = 5  # how many names an error lists
_SAMPLE_BYTES = 256
_MAX_HEADER_BYTES = 100_000_000
_RANDOM_STD = 0.02


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # the format's own name for it
    file: Path | None  # None: in no file


class Source(Protocol):
    """Where tensors come from, by their Hugging Face names."""

    table: dict[str, TensorInfo]

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Every tensor of the table, in the order that reads best. The memory may be the mapped file's."""
        ...

    def identity(self) -> Iterator[bytes]:
        """What tells these weights from others without reading them all: headers, and some bytes of each tensor."""
        ...


def check(source: Source, parts: Mapping[str, Part], ignores: Callable[[str], bool]) -> None:
    """Raises MissingTensorError, UnexpectedTensorError or TensorShapeError, naming tensors."""
    needed = [name for name, part in parts.items() if not part.is_optional]
    missing = [name for name in needed if name not in source.table]
    if missing:
        raise MissingTensorError(f"{len(missing)} of {len(needed)} tensors are missing: {_some(missing)}")
    unexpected = [name for name in source.table if name not in parts and not ignores(name)]
    if unexpected:
        raise UnexpectedTensorError(f"the model has no place for {len(unexpected)} tensors: {_some(unexpected)}")
    for name, part in parts.items():
        info = source.table.get(name)
        if info is not None and not part.accepts(info.shape):
            raise TensorShapeError(
                f"{info.file}: tensor {name} has shape {list(info.shape)}, "
                f"but the configuration implies {list(part.shape)}"
            )


def load(source: Source, parts: Mapping[str, Part], progress: Progress) -> None:
    """Fills the parameters. `check` comes first."""
    done, total = 0, sum(name in source.table for name in parts)
    progress(done, total)
    for name, tensor in source.tensors():
        if name in parts:
            try:
                parts[name].load(tensor)
            except MixedFormatsError as error:
                raise UnsupportedModelError(f"{source.table[name].file}: tensor {name}: {error}") from error
            done += 1
            progress(done, total)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# === safetensors ===


class SafetensorsSource:
    """The *.safetensors files of a Hugging Face directory: those that its index names, else all of them.

    A weight in FP8 is one tensor together with its scales; see `anaphora.fp8_checkpoint`.
    """

    def __init__(self, directory: Path, fp8_activations: Fp8Activations | None = None) -> None:
        """Reads the headers. Raises ModelFileError for files that are missing or damaged."""
        self.table: dict[str, TensorInfo] = {}
        self._headers: dict[Path, bytes] = {}
        self._files: dict[str, Path] = {}  # by the tensors' own names
        self._scales: dict[str, tuple[str, str | None]] = {}  # of FP8 weights: the names of their scales
        for file in _safetensors_files(directory):
            self._headers[file] = header = _safetensors_header(file)
            try:
                with safe_open(file, framework="pt") as tensors:  # checks the header against the size of the file
                    for name in tensors.keys():  # noqa: SIM118  # not a dict
                        if name.endswith(UNUSED_SCALES):
                            continue
                        view = tensors.get_slice(name)
                        self.table[canonical_name(name)] = TensorInfo(tuple(view.get_shape()), view.get_dtype(), file)
                        self._files[name] = file
            except SafetensorError as error:
                raise ModelFileError(
                    f"{file} is not a whole safetensors file ({len(header)} bytes of header): {error}"
                ) from error
        self._fold_scales(fp8_activations)

    def tensors(self) -> Iterator[tuple[str, Tensor | Fp8Tensor]]:
        """See Source."""
        with ExitStack() as stack:
            files = {file: stack.enter_context(safe_open(file, framework="pt")) for file in self._headers}

            def number(name: str) -> Tensor:
                scale: Tensor = files[self._files[name]].get_tensor(name)
                return scale.squeeze()

            for tensors in files.values():
                for theirs in tensors.offset_keys():
                    name = canonical_name(theirs)
                    if name in self._scales:
                        scale, input_scale = self._scales[name]
                        yield (
                            name,
                            Fp8Tensor(
                                tensors.get_tensor(theirs), number(scale), number(input_scale) if input_scale else None
                            ),
                        )
                    elif name in self.table:
                        yield name, tensors.get_tensor(theirs)

    def _fold_scales(self, activations: Fp8Activations | None) -> None:
        """Takes the scales of FP8 weights out of the table, whose weights are what any checkpoint of the model has."""
        for weight, info in list(self.table.items()):
            module = weight.removesuffix(".weight")
            if info.dtype != FP8 or module == weight:
                continue
            if activations is None:
                raise UnsupportedModelError(
                    f"{info.file}: tensor {weight} is in FP8, but the configuration has no quantization_config"
                )
            scale, input_scale = f"{weight}_scale", f"{module}.input_scale"
            needed = {scale: (1, info.shape[0]), **({input_scale: (1,)} if activations == "static" else {})}
            for name, sizes in needed.items():
                if name not in self.table:
                    raise MissingTensorError(f"{info.file}: tensor {weight} is in FP8, but there is no {name}")
                if math.prod(self.table[name].shape) not in sizes:
                    raise TensorShapeError(
                        f"{self.table[name].file}: tensor {name} has shape {list(self.table[name].shape)}, "
                        f"expected {' or '.join(map(str, sizes))} numbers"
                    )
            for name in (scale, input_scale):
                self.table.pop(name, None)
            self._scales[weight] = (scale, input_scale if input_scale in needed else None)

    def identity(self) -> Iterator[bytes]:
        """See Source."""
        for file, header in self._headers.items():
            yield header
            with file.open("rb") as data:
                for entry in json.loads(header).values():
                    if offsets := entry.get("data_offsets"):
                        data.seek(8 + len(header) + offsets[0])
                        yield data.read(min(_SAMPLE_BYTES, offsets[1] - offsets[0]))


def _safetensors_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        whole = directory / "model.safetensors"  # beside it there may be the same weights under other names
        files = [whole] if whole.exists() else sorted(directory.glob("*.safetensors"))
        if not files:
            raise ModelFileError(f"{directory} holds no *.safetensors file")
        return files
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{index} is damaged: {error!r}") from error
    files = [directory / str(name) for name in names]
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise ModelFileError(f"{index} names {len(absent)} files that are missing: {_some(absent)}")
    return files


def _safetensors_header(file: Path) -> bytes:
    try:
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            header = data.read(min(length, _MAX_HEADER_BYTES))
    except (OSError, struct.error) as error:
        raise ModelFileError(f"{file} is not a safetensors file: {error}") from error
    if len(header) < length:
        raise ModelFileError(f"{file} is truncated: its header should have {length:,} bytes and has {len(header):,}")
    return header


# === GGUF ===


class GgufSource:
    """The tensors of a GGUF file under their Hugging Face names: dequantised to float32, or matrices as they are."""

    def __init__(
        self,
        file: GgufFile,
        names: Iterator[str] | list[str],
        num_layers: int,
        convert: Callable[[str, Tensor], Tensor],
        *,
        keeps_blocks: bool = False,
    ) -> None:
        """`names` are the Hugging Face names to look for; `convert` undoes what the converter to GGUF did.

        `keeps_blocks`: quantised matrices come as they are.
        """
        self._keeps_blocks = keeps_blocks
        self._file = file
        self._convert = convert
        architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        architecture = architectures[file.metadata["general.architecture"]]
        mapping = gguf.get_tensor_name_map(architecture, num_layers)
        theirs = {mapping.get_name(name, try_suffixes=(".weight", ".bias")): name for name in names}
        self._names = {name: theirs.get(name, name) for name in file.tensors if name != "rope_freqs.weight"}
        self.table = {
            ours: TensorInfo(file.tensors[name].shape, file.tensors[name].quantization.name, file.path)
            for name, ours in self._names.items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor | QuantizedTensor]]:
        """See Source."""
        for name, ours in self._names.items():
            quantized = self._file.read_blocks(name) if self._keeps_blocks else None
            if quantized is None:
                yield ours, self._convert(ours, self._file.read(name))
            else:  # what a converter does to a matrix is to reorder its rows
                yield ours, QuantizedTensor(self._convert(ours, quantized.blocks), quantized.kind)

    def identity(self) -> Iterator[bytes]:
        """See Source."""
        yield struct.pack("<Q", len(self._file.data))
        for name, tensor in self._file.tensors.items():
            yield f"{name} {tensor}".encode()
            yield self._file.data[tensor.offset : tensor.offset + min(_SAMPLE_BYTES, tensor.num_bytes)]


# === random weights ===


class DummySource:
    """Random weights of the right shapes.

    Each tensor is a function of its name alone, so that every rank draws the same one and takes its share. They
    are drawn on the device: the numbers differ between kinds of device.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        """`parts` of the model to fill."""
        self._parts = {name: part for name, part in parts.items() if not part.is_optional}
        self.table = {name: TensorInfo(part.shape, "random", None) for name, part in self._parts.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See Source."""
        for name, part in self._parts.items():
            device = part.destination.device
            generator = torch.Generator(device)
            generator.manual_seed(int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little"))
            yield name, torch.randn(part.shape, generator=generator, device=device) * _RANDOM_STD + part.random_mean

    def identity(self) -> Iterator[bytes]:
        """See Source."""
        yield b"dummy"
