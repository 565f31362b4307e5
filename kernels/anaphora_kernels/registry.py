"""Which implementation of an op runs: a literal table, and one function that reads it.

    (op, device type, dtype)  ->  the first row of IMPLEMENTATIONS[op] that supports both
    (op, implementation name) ->  that row, or an error that says why not

Every implementation is a module `anaphora_kernels/<op>/<name>.py` with a function named like the op and the same
signature as `reference.py` beside it, which is the specification. A module is imported when it is first asked for, so
an optional backend (Triton, the native extension, a vendor's package) costs nothing and breaks nothing until then. If
it cannot be imported at that moment, the error is raised, and names the backend: there is no silent second choice.

To add an implementation: write the module, and add one row here. The test grid of the op picks it up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
HALVES = frozenset({torch.bfloat16, torch.float16})
FP8 = frozenset({torch.float8_e4m3fn})
ANY = frozenset({"cpu", "cuda"})


class UnknownImplementationError(ValueError):
    """No such implementation of this op, or none for this device and dtype."""


class BackendImportError(ImportError):
    """An implementation exists, but what it needs is not installed or is broken."""


@dataclass(frozen=True)
class Implementation:
    """One row of the table: what an implementation can run on."""

    name: str  # also the module's name inside the op's folder
    devices: frozenset[str] = ANY  # torch device types
    dtypes: frozenset[torch.dtype] = FLOATS  # of the activations; of the cache, in ops that have one
    capturable: bool = False  # paged_attention: a CUDA graph of it serves other lengths (see the op's module)


REFERENCE = Implementation("reference")
NATIVE = Implementation("cpu", devices=frozenset({"cpu"}), dtypes=frozenset({torch.float32, torch.bfloat16}))
PACKED = NATIVE  # for weights that are packed, and only for them
CACHE_REFERENCE = Implementation("reference", dtypes=FLOATS | FP8)
GPU = frozenset({"cuda"})
TRITON = Implementation("triton", devices=GPU)
CACHE_TRITON = Implementation("triton", devices=GPU, dtypes=FLOATS | FP8)

# In order of preference: the first row that supports the device and the dtype is chosen.
IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {
    "copy_blocks": (CACHE_TRITON, CACHE_REFERENCE),
    "embedding": (PACKED, REFERENCE),
    "gate_mul": (TRITON, NATIVE, REFERENCE),
    "kv_store": (CACHE_TRITON, CACHE_REFERENCE),
    "linear": (PACKED, REFERENCE),
    "linear_fp8": (Implementation("scaled_mm", dtypes=HALVES), REFERENCE),
    "paged_attention": (
        Implementation("triton", devices=GPU, dtypes=FLOATS | FP8, capturable=True),
        NATIVE,
        Implementation("sdpa", dtypes=FLOATS | FP8),
        # By name only: peers, where they are installed.
        Implementation("flashinfer", devices=GPU, dtypes=HALVES),
        Implementation("flash_attention", devices=GPU, dtypes=HALVES),
        CACHE_REFERENCE,
    ),
    "quantize_fp8": (TRITON, REFERENCE),
    "rms_norm": (TRITON, NATIVE, REFERENCE),
    "rope": (TRITON, REFERENCE),
    "rope_kv_store": (CACHE_TRITON, NATIVE, CACHE_REFERENCE),
    "sampling": (TRITON, NATIVE, REFERENCE),
}


@cache
def select(op: str, device_type: str, dtype: torch.dtype, implementation: str | None = None) -> Callable[..., Any]:
    """The function that runs `op` on tensors of this device type and dtype.

    `implementation` names one row of the table and overrides the order of preference; it is an argument and nothing
    else: no environment variable or module flag changes what runs.

    Raises UnknownImplementationError if nothing in the table fits, BackendImportError if what fits cannot be imported.
    """
    return load(op, choose(op, device_type, dtype, implementation).name)


def choose(op: str, device_type: str, dtype: torch.dtype, implementation: str | None = None) -> Implementation:
    """The row that `select` loads. Raises UnknownImplementationError if nothing in the table fits."""
    rows = IMPLEMENTATIONS.get(op)
    if rows is None:
        raise UnknownImplementationError(f"no op {op!r}; there are {', '.join(IMPLEMENTATIONS)}")
    for row in rows:
        if implementation not in (None, row.name):
            continue
        if device_type in row.devices and dtype in row.dtypes:
            return row
    wanted = f"{implementation!r} implementation" if implementation else "implementation"
    names = ", ".join(row.name for row in rows)
    raise UnknownImplementationError(f"{op} has no {wanted} for {dtype} on {device_type}; there are: {names}")


def load(op: str, name: str) -> Callable[..., Any]:
    """The function of that row. Raises BackendImportError if its module cannot be imported."""
    module = f"{__package__}.{op}.{name}"
    try:
        function: Callable[..., Any] = getattr(import_module(module), op)
    except ImportError as error:
        raise BackendImportError(f"the {name!r} implementation of {op} cannot be used: {error}") from error
    return function
