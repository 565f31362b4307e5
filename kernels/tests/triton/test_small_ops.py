"""The elementwise and copying ops in Triton against their references."""

from collections.abc import Iterator

import pytest
import torch
from anaphora_kernels import registry
from anaphora_kernels.copy_blocks import triton as copy_blocks
from anaphora_kernels.gate_mul import triton as gate_mul
from anaphora_kernels.kv_store import triton as kv_store
from anaphora_kernels.quantize_fp8 import triton as quantize_fp8
from anaphora_kernels.rms_norm import triton as rms_norm
from anaphora_kernels.rope import triton as rope
from anaphora_kernels.rope_kv_store import triton as rope_kv_store
from anaphora_kernels.testing import TRITON_DEVICE, assert_close

HALVES = [torch.bfloat16, torch.float16, torch.float32]
FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def _on_device() -> Iterator[None]:
    with TRITON_DEVICE:
        yield


def reference(op: str):
    return registry.select(op, "cpu", torch.float32, "reference")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator(TRITON_DEVICE).manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 8), (3, 576), (0, 8)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(dtype: torch.dtype, tokens: int, hidden: int, *, with_residual: bool) -> None:
    x, weight = normal(tokens, hidden, dtype=dtype) * 3, normal(hidden, dtype=dtype)
    for scales in (weight, weight.float()):
        residuals = [normal(tokens, hidden, dtype=dtype).flip(0) if with_residual else None for _ in range(2)]
        expected = reference("rms_norm")(x, scales, 1e-5, residual=residuals[0])
        assert_close(rms_norm.rms_norm(x, scales, 1e-5, residual=residuals[1]), expected)
        if residuals[0] is not None and residuals[1] is not None:
            assert_close(residuals[1], residuals[0])  # the interpreter truncates to bfloat16


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_gates(dtype: torch.dtype, tokens: int) -> None:
    gate_up = normal(tokens, 2 * 1100, dtype=dtype) * 4
    for activation in ("silu", "gelu"):
        assert_close(gate_mul.gate_mul(gate_up, activation), reference("gate_mul")(gate_up, activation))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("tokens", "width"), [(0, 16), (1, 16), (3, 5000)])
@pytest.mark.parametrize("is_static", [False, True])
def test_quantize_fp8(dtype: torch.dtype, tokens: int, width: int, *, is_static: bool) -> None:
    # Powers of two, of which FP8 holds every one exactly, and so does the interpreter.
    x = (2.0 ** (normal(tokens, width) * 2).round()).to(dtype) * normal(tokens, width).sign().to(dtype)
    x[:1] = 0
    x[1:2, -1] = 2.0**12 if is_static else 448.0
    x[2:3, 0] = 7.0
    scale = torch.tensor(0.5) if is_static else None
    expected, actual = reference("quantize_fp8")(x, scale), quantize_fp8.quantize_fp8(x, scale)
    assert_close(actual[1], expected[1])
    assert_close(actual[0].float() * actual[1], expected[0].float() * expected[1], dtype=FP8)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(8, 8), (64, 32), (80, 80)])
def test_rope(dtype: torch.dtype, head_dim: int, rotary_dim: int) -> None:
    merged = normal(3, 12, head_dim, dtype=dtype)
    expected = merged.clone()
    angles = normal(3, rotary_dim // 2) * 10
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    reference("rope")(expected[:, 1:11], cos, sin)
    rope.rope(merged[:, 1:11], cos, sin)
    assert_close(merged, expected)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("in_fp8", [False, True])
@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_stores(dtype: torch.dtype, rotary_dim: int, *, in_fp8: bool) -> None:
    """NaN stays where nothing is stored; keys and values lie in a merged projection of 9 query and 3 KV heads."""
    # The interpreter does not round to FP8 as cards do: quarter turns of what FP8 can hold need no rounding.
    heads = (normal(4, 15, 16) * 4).to(FP8).to(dtype)
    heads[1, 13, 3] = 60_000
    expected = heads.clone()
    angles = (normal(4, rotary_dim // 2) * 10).round() * (torch.pi / 2)
    cos, sin = angles.cos().round().to(dtype), angles.sin().round().to(dtype)
    cells = torch.tensor([5, 2, -1, 7])
    scales = (
        {"key_scale": torch.tensor([0.5, 0.25, 4.0]), "value_scale": torch.tensor([1.0, 2.0, 0.5])} if in_fp8 else {}
    )
    pools = [torch.full((2, 3, 4, 3, 16), float("nan")).to(FP8 if in_fp8 else dtype) for _ in range(4)]

    reference("kv_store")(heads[:, 9:12], heads[:, 12:], *pools[0], cells, **scales)
    kv_store.kv_store(heads[:, 9:12], heads[:, 12:], *pools[1], cells, **scales)
    expected_cells, actual_cells = (pool.float().nan_to_num(nan=-1e4) for pool in pools[:2])
    smallest = 2.0**-9 if in_fp8 else 0  # of FP8
    assert float((actual_cells - expected_cells).abs().max()) <= smallest

    reference("rope_kv_store")(
        expected[:, :9], expected[:, 9:12], expected[:, 12:], cos, sin, *pools[2], cells, **scales
    )
    rope_kv_store.rope_kv_store(heads[:, :9], heads[:, 9:12], heads[:, 12:], cos, sin, *pools[3], cells, **scales)
    assert_close(heads[:, :9], expected[:, :9])
    assert torch.equal(heads[:, 12:], expected[:, 12:])
    stored = [pool.float().nan_to_num(nan=-1e4) for pool in pools[2:]]
    assert_close(stored[1], stored[0], dtype=FP8 if in_fp8 else dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize("head_dim", [1, 8])
def test_copy_blocks(dtype: torch.dtype, head_dim: int) -> None:
    pool = normal(3, 2, 7, 5, 1, head_dim).to(dtype)
    expected = pool.clone()
    sources, destinations = torch.tensor([4, 0, 4]), torch.tensor([1, 6, 2])
    reference("copy_blocks")(expected, sources, destinations)
    copy_blocks.copy_blocks(pool, sources, destinations)
    copy_blocks.copy_blocks(pool, sources[:0], destinations[:0])
    assert torch.equal(pool.view(torch.uint8), expected.view(torch.uint8))
