"""The table of implementations: what is chosen, and how a refusal reads."""

import subprocess
import sys

import pytest
import torch
from anaphora_kernels import gate_mul, registry
from anaphora_kernels.registry import BackendImportError, Implementation, UnknownImplementationError


@pytest.mark.parametrize("op", registry.IMPLEMENTATIONS)
def test_every_row_of_the_table_can_be_loaded_and_the_reference_comes_last(op: str) -> None:
    rows = registry.IMPLEMENTATIONS[op]
    assert rows[-1].name == "reference"
    for row in rows:
        if "cpu" in row.devices:
            assert registry.select(op, "cpu", min(row.dtypes, key=str), row.name).__name__ == op


def test_the_argument_overrides_the_order() -> None:
    chosen = registry.select("paged_attention", "cpu", torch.float32)
    reference = registry.select("paged_attention", "cpu", torch.float32, "reference")
    assert chosen is not reference
    assert reference.__module__.endswith("paged_attention.reference")


@pytest.mark.parametrize(
    ("op", "device", "dtype", "name", "message"),
    [
        ("fly", "cpu", torch.float32, None, "no op 'fly'"),
        ("rope", "cpu", torch.int64, None, "no implementation for torch.int64 on cpu"),
        ("rope", "tpu", torch.float32, None, "on tpu"),
        ("rope", "cpu", torch.float32, "magic", "no 'magic' implementation"),
    ],
)
def test_a_refusal_names_what_was_asked(
    op: str, device: str, dtype: torch.dtype, name: str | None, message: str
) -> None:
    with pytest.raises(UnknownImplementationError, match=message):
        registry.select(op, device, dtype, name)


def test_a_broken_backend_is_named_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (Implementation("not_installed"), registry.REFERENCE)
    monkeypatch.setitem(registry.IMPLEMENTATIONS, "gate_mul", rows)
    registry.select.cache_clear()
    with pytest.raises(BackendImportError, match="'not_installed' implementation of gate_mul"):
        gate_mul(torch.zeros(1, 2), "silu")
    gate_mul(torch.zeros(1, 2), "silu", implementation="reference")
    registry.select.cache_clear()


def test_no_backend_is_imported_before_it_is_asked_for() -> None:
    program = "import sys, anaphora_kernels; sys.exit('triton' in sys.modules or 'anaphora._native' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
