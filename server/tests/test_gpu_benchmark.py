"""`benchmarks/gpu/run.py` runs without a GPU, in tiny shapes: what it would measure on one is all there."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"


def test_every_row_of_the_engine_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--device", "cpu", "--quick", "attention", "engine"]
    subprocess.run(command, check=True, timeout=300)
    record = json.loads((tmp_path / "gpu.json").read_text())
    measured = {row["what"] for row in record["rows"] if row["achieved"]}
    for what in (
        "prefill, 64",
        "append, 8 new on 128 cached",
        "decode step, batch 1, 512 tokens",
        "decode step, batch 1, 512 tokens, FP8 cache",
        "decode step, batch 8, 64 tokens",
        "decode step, 4 rows on one prefix of 512 tokens",
        "warm turn, 20 new on 512 cached",
        "cold prefill, 512 tokens",
    ):
        assert what in measured
    assert "| cold prefill, 512 tokens" in (tmp_path / "gpu.md").read_text()
