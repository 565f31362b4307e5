"""One rank of test_parallel.py, as a process of its own: loads each model and writes its logits and tokens.

python parallel_rank.py RANK WORLD_SIZE RENDEZVOUS OUT_DIR MODEL...
"""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from anaphora import _native
from anaphora.graphs import Capture
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.wire import Limits
from anaphora.worker import Worker
from paged_driver import Driver
from safetensors.torch import save_file
from step_driver import Sequence, StepDriver

PROMPTS = [[5, 9, 3, 11, 200, 210, 0], [7], list(range(40))]


def results(model: Path, group: ParallelGroup) -> tuple[torch.Tensor, list[list[int]], str]:
    """Logits of the last prompt, greedy continuations of all, and the model's fingerprint."""
    loaded = load_model(model, dtype="float32", device=torch.device("cpu"), group=group)
    logits = Driver(loaded.model).prompt_logits(PROMPTS[-1], 16)
    return logits, Driver(loaded.model).greedy(PROMPTS, 24, 16), loaded.fingerprint


def steps(model: Path, group: ParallelGroup, new_capture: Callable[[], Capture] | None) -> list[list[int]]:
    """The tokens of each step of a worker: prompts at once, then decoding. Ranks other than 0 know none.

    In float32: in bfloat16 two halves of a sum, rounded each, may choose another token than the whole.
    """
    device = torch.device("cpu")
    loaded = load_model(model, dtype="float32", device=device, group=group)
    worker = Worker(loaded, group, device, Progress(io.StringIO()), new_capture)
    limits = Limits(block_size=16, max_rows=3, max_step_tokens=64, max_context=128, num_blocks=24)
    driver = StepDriver(limits, worker.configure(limits))
    sequences = [Sequence(prompt, 8) for prompt in PROMPTS]
    for sequence in sequences:
        driver.start(sequence)
    return [worker.launch(driver.plan(sequences, 64)[0], 0.0).result().tokens.tolist() for _ in range(8)]


def main() -> None:
    torch.set_num_threads(1)
    _native.set_num_threads(1)
    rank, world_size, rendezvous, out, *models = sys.argv[1:]
    group = ParallelGroup.join(int(rank), int(world_size), rendezvous, torch.device("cpu"))
    seen = torch.tensor([float(rank)])
    assert group.broadcast(seen.clone(), source=1).item() == 1
    assert group.all_reduce_min(seen.clone()).item() == 0
    assert group.all_gather(seen).tolist() == [float(other) for other in range(int(world_size))]
    for index, model in enumerate(models):
        logits, tokens, fingerprint = results(Path(model), group)
        save_file({"logits": logits}, Path(out) / f"{index}-{rank}.safetensors")
        answer = {
            "tokens": tokens,
            "fingerprint": fingerprint,
            "steps": steps(Path(model), group, lambda: lambda run: run),
        }
        (Path(out) / f"{index}-{rank}.json").write_text(json.dumps(answer))
    group.close()


if __name__ == "__main__":
    main()
    # As a shard ends: gloo's threads may still hold tensors, which the interpreter could not free on its way out.
    os._exit(0)
