"""The architectures that can be served, by the name that a checkpoint gives itself.

To add one: a file that reads as arithmetic over `layers/`, one line in MODELS, and what its configuration says in
`model_config.py`. `server/tests/test_models.py` picks it up, given a tiny configuration to compare with transformers.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from torch import Tensor

from anaphora.context import ForwardContext
from anaphora.kv_cache import KvCache, KvLayout
from anaphora.layers.parameters import Part, Placement
from anaphora.layers.rotary import Angles
from anaphora.model_config import ModelConfig

# `ModelConfig.architecture` -> module:class in this package
MODELS = {
    "LlamaForCausalLM": "llama:LlamaForCausalLM",
    "MistralForCausalLM": "llama:LlamaForCausalLM",  # Llama with a window in every layer
    "Qwen3ForCausalLM": "qwen3:Qwen3ForCausalLM",
    "Gemma3ForCausalLM": "gemma3:Gemma3ForCausalLM",
}


class CausalLM(Protocol):
    """What the worker and the loader ask of a model. T tokens in a step, rows one after another, S sampled."""

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        """Memory for this rank's share of the parameters, not initialised."""
        ...

    def angles(self, positions: Tensor) -> Sequence[Angles]:
        """Rotations of positions [T] int64, one for each kind of layer: what `forward` takes."""
        ...

    def forward(self, tokens: Tensor, angles: Sequence[Angles], context: ForwardContext, kv_cache: KvCache) -> Tensor:
        """Tokens [T] int64, and `angles` of their positions -> hidden states [S, hidden]; writes the KV cache.

        S = T without `context.sampled`.
        """
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states of any n tokens, [n, hidden] -> logits [n, vocab_size], on every rank, in the model's dtype."""
        ...

    @property
    def kv_layout(self) -> KvLayout:
        """What one token needs in this rank's KV pool."""
        ...

    # [num_layers, 2, num_kv_heads of this rank] float32: of keys and of values in an FP8 cache, if there is one
    kv_scales: Tensor

    def parts(self) -> dict[str, Part]:
        """Every tensor that a checkpoint holds, by its Hugging Face name."""
        ...

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor besides `parts()`."""
        ...

    def from_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor of this Hugging Face name, as Hugging Face has it, from what a GGUF file holds."""
        ...


def model_class(architecture: str) -> type[CausalLM]:
    """The class of a model that MODELS lists; `model_config` has refused all others."""
    module, name = MODELS[architecture].split(":")
    model: type[CausalLM] = getattr(import_module(f"{__name__}.{module}"), name)
    return model
