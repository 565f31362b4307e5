"""What the folders of Triton tests have in common. They run on a GPU (`make test-gpu`), or on a CPU, interpreted:

    TRITON_INTERPRET=1 python -m pytest kernels/tests/triton server/tests/triton

Triton reads the variable when it is imported, so that the interpreted run is a process of its own. The interpreter has
no products of bfloat16 (it multiplies the bits): float16 and float32 stand in for it.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IGNORED = [] if IS_INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not IS_INTERPRETED:
        for item in items:
            if item.path.parent.name == "triton":
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody writes must reach no result: fresh memory is NaN, or far out of any range."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*args: Any, **options: Any) -> torch.Tensor:
        x = allocate(*args, **options)
        if x.dtype == torch.float8_e4m3fn:
            x.view(torch.uint8).fill_(0x7F)  # NaN
        elif x.is_floating_point():
            x.fill_(float("nan"))
        elif x.dtype != torch.bool:
            x.fill_(torch.iinfo(x.dtype).max // 2)
        return x

    return allocate_poisoned
