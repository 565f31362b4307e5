"""Products in FP8: activations as FP8, and torch's scaled product against the same in float32."""

import pytest
import torch
from anaphora_kernels import linear_fp8, quantize_fp8
from anaphora_kernels.linear_fp8 import Fp8Weight, scaled_mm
from anaphora_kernels.quantize_fp8 import reference
from anaphora_kernels.testing import assert_close, implementations
from torch._subclasses.fake_tensor import FakeTensorMode

FP8 = torch.float8_e4m3fn


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_token_is_scaled_by_its_largest_value() -> None:
    x = torch.tensor([[1.0, -448.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0], [2.0, 0.125, -1.0, 0.0]])
    values, scales = quantize_fp8(x)
    assert scales.flatten().tolist() == [1.0, pytest.approx(1e-12), pytest.approx(2 / 448)]
    torch.testing.assert_close(values.float() * scales, x, rtol=2**-4, atol=0)
    assert values.float().abs().amax(1).tolist() == [448, 0, 448]


def test_a_given_scale_saturates() -> None:
    values, scales = quantize_fp8(torch.tensor([[100.0, -3.0], [1.0, 2.0]]), torch.tensor(0.125))
    assert scales.tolist() == [[0.125], [0.125]]
    assert values.float().tolist() == [[448, -24], [8, 16]]


@pytest.mark.parametrize(("name", "dtype"), implementations("linear_fp8"))
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_product(name: str, dtype: torch.dtype, tokens: int, *, is_static: bool, has_bias: bool) -> None:
    x, exact = normal(tokens, 64).to(dtype), normal(48, 64, seed=1) / 8
    weight, scales = quantize_fp8(exact)
    bias = normal(48, seed=2).to(dtype) if has_bias else None
    input_scale = torch.tensor(0.01) if is_static else None
    out = linear_fp8(x, weight, scales.flatten(), bias, input_scale=input_scale, implementation=name)

    values, x_scales = quantize_fp8(x, input_scale)
    expected = (values.double() * x_scales) @ (weight.double() * scales).T + (0 if bias is None else bias.double())
    assert_close(out, expected.to(dtype), dtype=torch.bfloat16 if name == "scaled_mm" else dtype)
    plain = x.float() @ exact.T + (0 if bias is None else bias.float())
    assert (out.float() - plain).std() < 0.05 * plain.std()


@pytest.mark.parametrize("is_static", [False, True])
def test_a_gpu_takes_the_same_arguments(monkeypatch: pytest.MonkeyPatch, *, is_static: bool) -> None:
    """torch's own checks of a product on a GPU, without one: layouts, shapes of scales, types."""
    monkeypatch.setattr(scaled_mm, "quantize_fp8", reference.quantize_fp8)
    with FakeTensorMode():
        x = torch.empty(5, 64, dtype=torch.bfloat16, device="cuda")
        weight = torch.empty(48, 64, dtype=FP8, device="cuda")
        scale = torch.empty((), device="cuda") if is_static else None
        bias = torch.empty(48, dtype=torch.bfloat16, device="cuda")
        out = scaled_mm.linear_fp8(x, weight, torch.empty(48, device="cuda"), bias, input_scale=scale)
    assert (out.shape, out.dtype, out.device.type) == ((5, 48), torch.bfloat16, "cuda")


def test_sizes_that_no_product_takes_stay_floats() -> None:
    weight = Fp8Weight(40, 24, torch.bfloat16, torch.device("cpu"), keeps_floats=False)
    assert not weight[0:40].takes_fp8
    weight[0:40].pack(torch.ones(40, 24))
    assert (weight.values.dtype, weight.scales, weight[0:40].format) == (torch.bfloat16, None, "bfloat16")
