"""The Triton kernels against their references: on a GPU (`make test-gpu`), or on a CPU by Triton's interpreter:

    TRITON_INTERPRET=1 python -m pytest kernels/tests/triton

Triton reads the variable when it is imported, so that the interpreted run is a process of its own. The interpreter has
no products of bfloat16 (it multiplies the bits): float16 and float32 stand in for it.
"""

import os
from pathlib import Path

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not IS_INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not IS_INTERPRETED:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.gpu)
