"""What each dtype and quantised form costs in accuracy, on a CPU: perplexity, and agreement with float32.

    python benchmarks/accuracy.py                              # SmolLM2-135M-Instruct from its Q4_1 file
    python benchmarks/accuracy.py MODEL.gguf --llama-perplexity PATH

The text is this repository's own prose, with single spaces for all white space: in runs of it llama.cpp's tokenizer
differs from the model's own. As `llama-perplexity` does it: windows of 512 tokens, each computed from an empty cache;
the second half of each is scored. "Same token": how often the likeliest next token is float32's. "KL": the mean
divergence of the next token's distribution from float32's, in nats.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from anaphora.config import cache_dir
from anaphora.context import ForwardContext
from anaphora.kv_cache import KvCache
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup
from anaphora_kernels import AttentionMetadata, kv_indices
from report import save, table
from torch import Tensor
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "LICENSE")
SMOLLM2 = cache_dir() / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOW = 512  # tokens
BLOCK_SIZE = 16
FORMS = (("float32", "none"), ("bfloat16", "none"), ("float32", "gguf"), ("bfloat16", "gguf"), ("bfloat16", "int8"))


@dataclass(frozen=True)
class Scores:
    """Of one form."""

    log_probabilities: Tensor  # [n, vocab] float32: of every token at the scored positions
    targets: Tensor  # [n] int64: those that the text has there

    @property
    def perplexity(self) -> float:
        return float(self.log_probabilities.gather(1, self.targets[:, None]).mean().neg().exp())

    def same_token(self, exact: Scores) -> float:
        return float((self.log_probabilities.argmax(1) == exact.log_probabilities.argmax(1)).float().mean())

    def divergence(self, exact: Scores) -> float:
        difference = exact.log_probabilities - self.log_probabilities
        return float((exact.log_probabilities.exp() * difference).sum(1).mean())


@torch.inference_mode()
def score(loaded: LoadedModel, windows: list[list[int]]) -> Scores:
    """Computes every window, and keeps what its second half predicts."""
    model, cpu = loaded.model, torch.device("cpu")
    num_blocks = WINDOW // BLOCK_SIZE
    cache = KvCache(loaded.kv_layout, num_blocks, BLOCK_SIZE, cpu)
    tables, positions = torch.arange(num_blocks, dtype=torch.int32)[None], torch.arange(WINDOW)
    context = ForwardContext(
        attention=AttentionMetadata.build(tables, [WINDOW], [WINDOW]),
        kv_indices=kv_indices(tables, torch.zeros(WINDOW, dtype=torch.int64), positions, BLOCK_SIZE),
    )
    scored, targets = [], []
    for window in windows:
        hidden = model.forward(torch.tensor(window), model.angles(positions), context, cache)
        logits = model.compute_logits(hidden[WINDOW // 2 : WINDOW - 1].contiguous())
        scored.append(logits.float().log_softmax(-1))
        targets.append(torch.tensor(window[WINDOW // 2 + 1 :]))
    return Scores(torch.cat(scored), torch.cat(targets))


def llama_perplexity(command: Path, model: Path, text: str, num_windows: int) -> float:
    """What llama.cpp makes of the same file and the first windows of the same text."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        arguments = ["-m", str(model), "-f", file.name, "-c", str(WINDOW), "-b", str(WINDOW)]
        arguments += ["--chunks", str(num_windows)]
        done = subprocess.run([str(command), *arguments], capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    if found is None:
        raise RuntimeError(f"{command} prints no perplexity:\n{done.stdout[-500:]}{done.stderr[-500:]}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=SMOLLM2, help="a GGUF file")
    parser.add_argument("--windows", type=int, default=8, help="how many windows of the text")
    parser.add_argument("--llama-perplexity", type=Path, help="llama.cpp's program of that name")
    options = parser.parse_args()

    text = " ".join(" ".join((ROOT / name).read_text(encoding="utf-8") for name in TEXTS).split())
    tokenizer = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    num_windows = min(options.windows, len(tokens) // WINDOW)
    windows = [tokens[start : start + WINDOW] for start in range(0, num_windows * WINDOW, WINDOW)]

    rows: list[list[str]] = []
    results: list[dict[str, float | str]] = []
    exact: Scores | None = None
    for dtype, quantize in FORMS:
        device = torch.device("cpu")
        loaded = load_model(options.model, dtype=dtype, quantize=quantize, device=device, group=ParallelGroup())
        scores = score(loaded, windows)
        exact = exact or scores
        figures = (scores.perplexity, scores.same_token(exact), scores.divergence(exact))
        weights = ", ".join(loaded.weight_formats)
        rows.append([weights, dtype, f"{figures[0]:.4f}", f"{figures[1]:.1%}", f"{figures[2]:.5f}"])
        names = ("perplexity", "same_token", "divergence")
        results.append({"weights": weights, "activations": dtype, **dict(zip(names, figures, strict=True))})
    if options.llama_perplexity:
        theirs = llama_perplexity(options.llama_perplexity, options.model, text, num_windows)
        rows.append(["llama.cpp", "", f"{theirs:.4f}", "", ""])
        results.append({"weights": "llama.cpp", "perplexity": theirs})
    comparison = table(["weights", "activations", "perplexity", "same token", "KL"], rows)
    print(comparison)
    print(save("accuracy", {"model": options.model.name, "windows": num_windows, "forms": results}, comparison))


if __name__ == "__main__":
    main()
