"""Mistral: Llama with a sliding window in every layer, and no biases. https://arxiv.org/abs/2310.06825."""

from dataclasses import replace

from anaphora.layers.parameters import Placement
from anaphora.model_config import ModelConfig
from anaphora.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    """Later releases (`"sliding_window": null`) are Llama in all but name."""

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        """The window is `config.sliding_window`."""
        config = replace(config, attention_bias=False, mlp_bias=False)
        super().__init__(config, placement, sliding_window=config.sliding_window)
