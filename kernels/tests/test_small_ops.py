"""Every implementation of the elementwise and copying ops against the same arithmetic in float64, written here."""

import pytest
import torch
from anaphora_kernels import (
    copy_blocks,
    gate_mul,
    kv_indices,
    kv_store,
    linear,
    registry,
    rms_norm,
    rope,
    rope_kv_store,
)
from anaphora_kernels.linear.cpu import PackedWeight
from anaphora_kernels.testing import assert_close, implementations

TOKENS = [1, 2, 33]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("rms_norm"))
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden", [8, 576])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("wide_weight", [False, True])
def test_rms_norm(
    implementation: str, dtype: torch.dtype, tokens: int, hidden: int, *, with_residual: bool, wide_weight: bool
) -> None:
    x = normal(tokens, hidden, dtype=dtype) * 3
    weight = normal(hidden, dtype=torch.float32 if wide_weight else dtype)
    residual = normal(tokens, hidden, dtype=dtype).flip(0) if with_residual else None
    total = x if residual is None else residual + x
    wide = total.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    before = x.clone()
    actual = rms_norm(x, weight, 1e-5, residual=residual, implementation=implementation)
    assert_close(actual, expected.to(dtype))
    assert torch.equal(x, before)
    if residual is not None:
        assert torch.equal(residual, total)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("linear"))
@pytest.mark.parametrize("tokens", [1, 2, 64, 65])
@pytest.mark.parametrize("out_features", [1, 7, 48])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(implementation: str, dtype: torch.dtype, tokens: int, out_features: int, *, with_bias: bool) -> None:
    x, weight = normal(tokens, 24, dtype=dtype), normal(out_features, 24, dtype=dtype)
    bias = normal(out_features, dtype=dtype) if with_bias else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    actual = linear(x, pack(weight) if implementation == "cpu" else weight, bias, implementation=implementation)
    assert actual.is_contiguous()
    assert_close(actual, expected.to(dtype))


def pack(weight: torch.Tensor) -> PackedWeight:
    packed = PackedWeight(*weight.shape, str(weight.dtype).removeprefix("torch."))
    packed[:].pack(weight)
    return packed


@pytest.mark.parametrize(("implementation", "dtype"), implementations("gate_mul"))
@pytest.mark.parametrize("tokens", TOKENS)
def test_silu_gate(implementation: str, dtype: torch.dtype, tokens: int) -> None:
    gate_up = normal(tokens, 2 * 24, dtype=dtype)
    before = gate_up.clone()
    gate, up = gate_up.double().chunk(2, -1)
    assert_close(gate_mul(gate_up, "silu", implementation=implementation), (gate / (1 + (-gate).exp()) * up).to(dtype))
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("gate_mul"))
@pytest.mark.parametrize("tokens", TOKENS)
def test_gelu_gate(implementation: str, dtype: torch.dtype, tokens: int) -> None:
    gate_up = normal(tokens, 2 * 24, dtype=dtype)
    before = gate_up.clone()
    gate, up = gate_up.double().chunk(2, -1)
    gelu = gate / 2 * (1 + ((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)).tanh())
    assert_close(gate_mul(gate_up, "gelu", implementation=implementation), (gelu * up).to(dtype))
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("rope"))
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(8, 8), (64, 64), (64, 32)])
def test_rope(implementation: str, dtype: torch.dtype, tokens: int, head_dim: int, rotary_dim: int) -> None:
    merged = normal(tokens, 5, head_dim, dtype=dtype)
    x = merged[:, 1:4]  # strided, as a part of a merged projection
    angles = normal(tokens, rotary_dim // 2) * 10
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:rotary_dim].double())
    turned = pairs * torch.complex(cos.double(), sin.double()).unsqueeze(1)
    expected = torch.cat([turned.real, turned.imag, x[..., rotary_dim:].double()], dim=-1).to(dtype)
    outside = merged[:, [0, 4]].clone()
    rope(x, cos, sin, implementation=implementation)
    assert_close(x, expected)
    assert torch.equal(merged[:, [0, 4]], outside)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("kv_store"))
def test_kv_store_writes_its_cells_and_no_others(implementation: str, dtype: torch.dtype) -> None:
    key_cache, value_cache = torch.full((2, 6, 4, 2, 8), float("nan"), dtype=dtype)
    merged = normal(5, 7, 8, dtype=dtype)
    key, value = merged[:, 2:4], merged[:, 4:6]  # strided
    tables = torch.tensor([[5, 0], [3, 1]], dtype=torch.int32)
    cells = kv_indices(tables, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2, 3, 4, 0, 7]), block_size=4)
    assert cells.tolist() == [22, 23, 0, 12, 7]
    kv_store(key, value, key_cache, value_cache, cells, implementation=implementation)
    for cache, stored in ((key_cache, key), (value_cache, value)):
        flat = cache.view(24, 2, 8)
        assert torch.equal(flat[cells], stored)
        assert int(flat.isnan().all(-1).all(-1).sum()) == 24 - 5


@pytest.mark.parametrize(("implementation", "dtype"), implementations("kv_store"))
def test_kv_store_in_fp8_saturates_and_skips_negative_cells(implementation: str, dtype: torch.dtype) -> None:
    caches = torch.full((2, 3, 4, 2, 8), float("nan")).to(torch.float8_e4m3fn)
    key, value = normal(3, 2, 8, dtype=dtype), normal(3, 2, 8, dtype=dtype).flip(0)
    value[0, 1, 0] = 60_000
    scales = torch.tensor([[0.5, 0.01], [2.0, 1.0]])
    cells = torch.tensor([7, -1, 0])
    names = {"key_scale": scales[0], "value_scale": scales[1]}
    kv_store(key, value, *caches, cells, implementation=implementation, **names)
    for cache, x, scale in zip(caches, (key, value), scales, strict=True):
        quotients = (x.double() / scale.double().view(-1, 1))[[0, 2]].clamp(-448, 448)
        stored = cache.view(12, 2, 8)[[7, 0]].double()
        exponents = quotients.abs().clamp(min=2**-6).log2().floor()
        assert bool(((stored - quotients).abs() <= 2 ** (exponents - 4) * (1 + 1e-6)).all())  # half of a last place
        assert int(cache.float().isnan().sum()) == 10 * 16
    assert float(caches[1].view(12, 2, 8)[7, 1, 0].float()) == 448


@pytest.mark.parametrize(("implementation", "dtype"), implementations("rope_kv_store"))
@pytest.mark.parametrize("in_fp8", [False, True])
def test_rope_kv_store_is_rope_and_then_kv_store(implementation: str, dtype: torch.dtype, *, in_fp8: bool) -> None:
    cache_dtype = torch.float8_e4m3fn if in_fp8 else dtype
    rows = registry.IMPLEMENTATIONS["rope_kv_store"]
    if not any(row.name == implementation and cache_dtype in row.dtypes for row in rows):
        pytest.skip(f"{implementation} knows no {cache_dtype}")
    heads = normal(3, 7, 16, dtype=dtype)
    expected = heads.clone()
    angles = normal(3, 4) * 10
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    cells = torch.tensor([5, 2, 7])
    scales = {"key_scale": torch.tensor([0.5, 0.1]), "value_scale": torch.tensor([1.0, 2.0])} if in_fp8 else {}
    shape = (2, 2, 4, 2, 16)
    expected_caches, caches = (torch.zeros(shape, dtype=cache_dtype) for _ in range(2))
    rope(expected[:, :5], cos, sin, implementation="reference")
    kv_store(expected[:, 3:5], expected[:, 5:], *expected_caches, cells, implementation="reference", **scales)

    query, key, value = heads[:, :3], heads[:, 3:5], heads[:, 5:]
    rope_kv_store(query, key, value, cos, sin, *caches, cells, implementation=implementation, **scales)
    assert_close(query, expected[:, :3])
    assert torch.equal(value, expected[:, 5:])
    assert_close(caches.float(), expected_caches.float(), dtype=cache_dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_copies_of_blocks_are_bytes(dtype: torch.dtype) -> None:
    pool = normal(1, 2, 4, 2, 1, 4).to(dtype)
    expected = pool[:, :, 3].float().clone()
    copy_blocks(pool, torch.tensor([3]), torch.tensor([0]))
    assert torch.equal(pool[:, :, 0].float(), expected)


@pytest.mark.parametrize(("implementation", "dtype"), implementations("copy_blocks"))
def test_copy_blocks(implementation: str, dtype: torch.dtype) -> None:
    pool = normal(3, 2, 7, 4, 2, 8, dtype=dtype)
    expected = pool.clone()
    expected[:, :, 1], expected[:, :, 6] = pool[:, :, 4], pool[:, :, 0]
    copy_blocks(pool, torch.tensor([4, 0]), torch.tensor([1, 6]), implementation=implementation)
    assert torch.equal(pool, expected)
