"""What transformers generates: the tokens that ours must equal, and how sure it was of each.

Greedy, in float32, on the CPU. The prompts are generated in one left-padded batch, for speed; then each whole
sequence is put through the model once more by itself, without padding, and every token must be the best of its
position there too. So the expected tokens are those of an unpadded, unbatched run, and the gap between the two
best logits is known for each.

A reference is kept beside the cached models, under a name that changes with the model, the prompts and the
versions of torch and transformers: SmolLM2's takes about a minute."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from models import cache_directory
from prompts import TEXTS
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_NEW_TOKENS = 64
# Below this, two float32 implementations may honestly disagree: a reference with such a tie is no reference.
SMALLEST_GAP = 2e-4


@dataclass(frozen=True)
class Expected:
    """The continuation of one prompt."""

    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # up to MAX_NEW_TOKENS; an EOS token is the last
    gaps: tuple[float, ...]  # best logit minus second best, per token of `ids`

    def explain(self, got: list[int]) -> str:
        """Where `got` leaves the expected tokens, and how near a tie that position is."""
        for index, (want, have) in enumerate(zip(self.ids, got, strict=False)):
            if want != have:
                gap = f"{self.gaps[index]:.2g} between the reference's two best logits"
                return f"token {index} of {self.prompt[:40]!r}…: expected {want}, got {have} (a gap of {gap})"
        return f"{len(got)} tokens for {self.prompt[:40]!r}…, expected {len(self.ids)}"


@cache
def expect(model_directory: Path) -> tuple[Expected, ...]:
    """The reference for every prompt of prompts.py."""
    key = json.dumps([model_directory.name, TEXTS, MAX_NEW_TOKENS, torch.__version__, transformers.__version__])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    kept = cache_directory() / "test-models" / f"reference-{model_directory.name}-{digest}.json"
    if not kept.exists():
        expected = _generate(model_directory)
        scratch = kept.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps([asdict(one) for one in expected]))
        scratch.rename(kept)
    return tuple(
        Expected(one["prompt"], tuple(one["prompt_ids"]), tuple(one["ids"]), tuple(one["gaps"]))
        for one in json.loads(kept.read_text())
    )


def _generate(model_directory: Path) -> tuple[Expected, ...]:
    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_directory, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.inference_mode():
        generated = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        padded_length = batch.input_ids.shape[1]
        end = model.generation_config.eos_token_id
        return tuple(
            _verify(model, text, tuple(tokenizer(text).input_ids), _until_end(row[padded_length:].tolist(), end))
            for text, row in zip(TEXTS, generated, strict=True)
        )


def _until_end(ids: list[int], end: int) -> tuple[int, ...]:
    return tuple(ids[: ids.index(end) + 1] if end in ids else ids)


def _verify(model: Any, prompt: str, prompt_ids: tuple[int, ...], ids: tuple[int, ...]) -> Expected:
    logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    best = logits.topk(2).values
    gaps = (best[:, 0] - best[:, 1]).tolist()
    if logits.argmax(-1).tolist() != list(ids) or min(gaps) < SMALLEST_GAP:
        raise AssertionError(f"the reference for {prompt[:40]!r} is not certain: smallest gap {min(gaps):.2g}")
    return Expected(prompt, prompt_ids, ids, tuple(gaps))
