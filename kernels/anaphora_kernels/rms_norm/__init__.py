"""Root-mean-square normalisation, with the residual sum that comes before it.

Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
"""

from torch import Tensor

from anaphora_kernels import registry


def rms_norm(
    x: Tensor,  # [T, hidden]
    weight: Tensor,  # [hidden], dtype of x or float32
    eps: float,
    *,
    residual: Tensor | None = None,  # [T, hidden], dtype of x; written: it becomes residual + x
    implementation: str | None = None,
) -> Tensor:
    """normalise(residual + x) * weight, or normalise(x) * weight: [T, hidden], dtype of x.

    The sum is rounded to the dtype of x. The normalisation is float32, rounded to the dtype of the weight before it is
    multiplied by it: Llama rounds to the dtype of x before the product, Gemma (float32 weights) after it.
    """
    run = registry.select("rms_norm", x.device.type, x.dtype, implementation)
    out: Tensor = run(x, weight, eps, residual=residual)
    return out
