"""The Triton kernels compile for a card that is not here, and fit. All of them: `python kernels/bench/compile.py`."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "bench/compile.py"


def test_every_kernel_compiles_for_hopper_and_fits() -> None:
    result = subprocess.run([sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    kernels = {line.split(" | ")[1] for line in result.stdout.splitlines()[2:]}
    assert {"attend", "merge", "draw", "rope_kv_store_heads", "rms_norm_rows"} <= kernels
