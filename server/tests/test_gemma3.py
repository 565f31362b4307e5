"""A real model, Gemma 3 270M from its quantised GGUF file, against transformers on the same weights, in float32.

The prompts are longer than the window of its local layers, and read in chunks. transformers' own reader of GGUF files
takes minutes for a vocabulary of 262,144, so its model is filled here: names by a table, norms less 1.
"""

from pathlib import Path

import pytest
import torch
from anaphora import fetch
from anaphora.config import cache_dir
from anaphora.gguf_file import GgufFile
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from paged_driver import Driver
from test_gguf_models import gguf_name
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

NAME = "gemma3-270m"
CONFIG = Gemma3TextConfig(
    vocab_size=262_144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    max_position_embeddings=32_768,
    sliding_window=512,
)
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return fetch.fetch(NAME, fetch.MODELS[NAME], cache_dir() / "models", Progress())
    except fetch.FetchError as error:
        pytest.skip(f"{NAME} cannot be had: {error}")


@pytest.fixture(scope="module")
def theirs(path: Path) -> Gemma3ForCausalLM:
    file = GgufFile(path)
    with torch.device("meta"):
        names = [name for name in Gemma3ForCausalLM(CONFIG).state_dict() if name != "lm_head.weight"]
    state = {
        name: file.read(gguf_name("gemma3", name)) - (1.0 if name.endswith("norm.weight") else 0.0) for name in names
    }
    return Gemma3ForCausalLM.from_pretrained(None, config=CONFIG, state_dict=state).eval()


@pytest.fixture(scope="module")
def ours(path: Path) -> LoadedModel:
    return load_model(path, device=torch.device("cpu"), group=ParallelGroup(), dtype="float32")


def prompts() -> list[list[int]]:
    """BOS, then: words at random; 600 of them and the first again, which the global layers alone can see; a few."""
    random = torch.Generator().manual_seed(5)
    words = torch.randint(500, 20_000, (1300,), generator=random).tolist()
    return [[2, *words[:700]], [2, *words[700:], *words[700:760]], [2, 818, 5279, 529, 7001, 563]]


def test_greedy_tokens_beyond_the_window(theirs: Gemma3ForCausalLM, ours: LoadedModel) -> None:
    outputs = Driver(ours.model).greedy(prompts(), NUM_TOKENS, 256)
    for prompt, output in zip(prompts(), outputs, strict=True):
        sequence = prompt + output
        with torch.inference_mode():
            expected = theirs(torch.tensor([sequence]), logits_to_keep=NUM_TOKENS + 1).logits[0, :-1]
        # Each token is the likeliest after those before it: by induction, what transformers would have generated.
        assert expected.argmax(-1).tolist() == output
