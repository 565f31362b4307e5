"""One rank of test_parallel.py, as a process of its own: loads each model and writes its logits and greedy tokens.

python parallel_rank.py RANK WORLD_SIZE RENDEZVOUS OUT_DIR MODEL...
"""

import json
import sys
from pathlib import Path

import torch
from anaphora import _native
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from paged_driver import Driver
from safetensors.torch import save_file

PROMPTS = [[5, 9, 3, 11, 200, 210, 0], [7], list(range(40))]


def results(model: Path, group: ParallelGroup) -> tuple[torch.Tensor, list[list[int]], str]:
    """Logits of the last prompt, greedy continuations of all, and the model's fingerprint."""
    loaded = load_model(model, dtype="float32", device=torch.device("cpu"), group=group)
    logits = Driver(loaded.model).prompt_logits(PROMPTS[-1], 16)
    return logits, Driver(loaded.model).greedy(PROMPTS, 24, 16), loaded.fingerprint


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
        (Path(out) / f"{index}-{rank}.json").write_text(json.dumps({"tokens": tokens, "fingerprint": fingerprint}))
    group.close()


if __name__ == "__main__":
    main()
