"""The families of models that the library is tested with: the smallest model of each, from its configuration, and the
table of `docs/models.md` that they make.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

TEXT = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 256, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4, "pad_token_id": 0,
}  # fmt: skip
MAMBA = {"mamba_d_state": 8, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
          "layer_types": ["linear_attention", "full_attention"] * 2}  # fmt: skip
STREAMS = {"altup_num_inputs": 4, "laurel_rank": 4, "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8,
           "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2}  # fmt: skip
IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1,
          "num_heads": 2, "image_size": 16, "patch_size": 8, "out_hidden_size": 32}  # fmt: skip
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: what people call it.
        model_type: transformers' name of its configuration.
        changes: settings of its smallest model, in place of those of `TEXT`; with ``None`` a setting is left out.
        blocks: where its decoder blocks lie.
        images: for a multimodal class, the settings of its tower for images; ``changes`` are of its language model.
        targets: the layers that the adapter is on.
    """

    name: str
    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    blocks: str = "model.layers"
    images: Mapping[str, Any] | None = None
    targets: str | tuple[str, ...] = "all-linear"

    def make(self) -> PreTrainedModel:
        """The smallest model with random weights; skips the test where transformers is too old to know it."""
        if self.model_type not in CONFIG_MAPPING:
            pytest.skip(f"this transformers has no {self.model_type}")
        torch.manual_seed(0)
        text = {key: value for key, value in {**TEXT, **self.changes}.items() if value is not None}
        if self.images is None:
            return AutoModelForCausalLM.from_config(CONFIG_MAPPING[self.model_type](**text)).eval()
        config = CONFIG_MAPPING[self.model_type](text_config=text, vision_config=dict(self.images))
        return AutoModelForImageTextToText.from_config(config).eval()


def _text() -> Iterator[Family]:
    yield Family("Llama", "llama")
    yield Family("Mistral", "mistral")
    yield Family("Ministral 3", "ministral3")
    yield Family("Qwen2, Qwen2.5", "qwen2")
    yield Family("Qwen3", "qwen3")
    yield Family("Qwen3.5", "qwen3_5_text", LINEAR)
    yield Family("Gemma", "gemma")
    yield Family("Gemma 2", "gemma2")
    yield Family("Gemma 3", "gemma3_text")
    yield Family("Gemma 4", "gemma4_text", {
        "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    })  # fmt: skip
    yield Family("Phi-1, Phi-2", "phi")
    yield Family("Phi-3, Phi-4", "phi3")
    yield Family("GPT-2", "gpt2", blocks="transformer.h")
    yield Family("GPT-NeoX, Pythia", "gpt_neox", blocks="gpt_neox.layers")
    yield Family("OPT", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, blocks="model.decoder.layers")
    yield Family("BLOOM", "bloom", blocks="transformer.h")
    yield Family("OLMo", "olmo")
    yield Family("OLMo 2", "olmo2")
    yield Family("OLMo 3", "olmo3")
    yield Family("Falcon", "falcon", {"head_dim": None}, blocks="transformer.h")
    yield Family("Granite", "granite")
    yield Family("Command R", "cohere")
    yield Family("Command R7B, Command A", "cohere2")
    yield Family("StarCoder2", "starcoder2")
    yield Family("StableLM", "stablelm")
    yield Family("GLM-4", "glm4")
    yield Family("SmolLM3", "smollm3")
    yield Family("Nemotron", "nemotron")
    yield Family("Seed-OSS", "seed_oss")
    yield Family("EXAONE 4", "exaone4")


def _experts() -> Iterator[Family]:
    yield Family("Mixtral", "mixtral", EXPERTS)
    yield Family("Qwen2-MoE", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 16})
    yield Family("Qwen3-MoE", "qwen3_moe", EXPERTS)
    yield Family("DeepSeek-V2", "deepseek_v2", {**EXPERTS, **LATENT})
    yield Family("DeepSeek-V3, R1", "deepseek_v3", {**EXPERTS, **LATENT})
    yield Family("gpt-oss", "gpt_oss", EXPERTS)
    yield Family("OLMoE", "olmoe", EXPERTS)
    yield Family("GLM-4.5, GLM-4.6", "glm4_moe", {**EXPERTS, "n_routed_experts": 4})
    yield Family("Granite-MoE", "granitemoe", EXPERTS)
    yield Family("Phi-3.5-MoE", "phimoe", EXPERTS, targets=("q_proj", "o_proj"))
    yield Family("MiniMax-M2", "minimax_m2", EXPERTS)
    yield Family("Llama 4, text", "llama4_text", {**EXPERTS, "intermediate_size_mlp": 48}, targets=("q_proj", "o_proj"))


def _recurrent() -> Iterator[Family]:
    yield Family("Mamba", "mamba", blocks="backbone.layers", targets=("x_proj", "in_proj"))
    yield Family("Mamba-2", "mamba2", {"num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
                 blocks="backbone.layers", targets=("in_proj",))  # fmt: skip
    yield Family("Falcon-Mamba", "falcon_mamba", blocks="backbone.layers", targets=("x_proj", "in_proj"))
    yield Family("Jamba", "jamba", {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
                 targets=("q_proj", "in_proj", "gate_proj"))  # fmt: skip
    yield Family("Bamba", "bamba", {**MAMBA, "attn_layer_indices": [1]}, targets=("q_proj", "in_proj", "gate_proj"))
    yield Family("Granite 4", "granitemoehybrid", {
        **EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16,
    }, targets=("q_proj", "in_proj"))  # fmt: skip
    yield Family("Falcon-H1", "falcon_h1", {**MAMBA, "mamba_d_ssm": 64}, targets=("q_proj", "in_proj", "gate_proj"))
    yield Family("Nemotron-H, Nemotron 3", "nemotron_h", {
        **EXPERTS, "layers_block_type": ["mamba", "attention", "moe", "mamba"], "num_hidden_layers": None,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8,
        "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 16,
    }, targets=("q_proj", "in_proj", "up_proj"))  # fmt: skip
    yield Family("Qwen3-Next", "qwen3_next", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16})
    yield Family("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48})
    yield Family("RecurrentGemma", "recurrent_gemma", {"attention_window_size": 64, "lru_width": 32})
    yield Family("OLMo Hybrid", "olmo_hybrid", LINEAR)


def _multimodal() -> Iterator[Family]:
    inner, images = "model.language_model.layers", IMAGES
    yield Family("Qwen2-VL", "qwen2_vl", SECTIONS, inner, {**images, "embed_dim": 16})
    yield Family("Qwen2.5-VL", "qwen2_5_vl", SECTIONS, inner, images)
    yield Family("Qwen3-VL", "qwen3_vl", SECTIONS, inner, images)
    yield Family("Qwen3.5, with images", "qwen3_5", LINEAR, inner, images)
    pixtral = {"model_type": "pixtral", **images}
    yield Family("Mistral 3, with images", "mistral3", {"model_type": "mistral"}, inner, pixtral)
    siglip = {"model_type": "siglip_vision_model", **images}
    yield Family("Gemma 3, with images", "gemma3", {}, inner, siglip)
    yield Family("Llama 4, with images", "llama4", {**EXPERTS, "intermediate_size_mlp": 48},
                 "language_model.model.layers",
                 {**images, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
                 targets=("q_proj", "o_proj"))  # fmt: skip
    yield Family("InternVL 3", "internvl", {"model_type": "qwen2"}, inner, images)
    clip = {"model_type": "clip_vision_model", **images}
    yield Family("LLaVA", "llava", {"model_type": "llama"}, inner, clip)
    yield Family("SmolVLM", "smolvlm", {"model_type": "llama"}, "model.text_model.layers", images)


SEVERAL_STREAMS = (
    Family("Gemma 3n", "gemma3n_text", STREAMS),
    Family("DeepSeek-V4", "deepseek_v4", {**EXPERTS, **LATENT, "hc_mult": 2}),
)
"""Families that are refused, because their blocks pass on several streams."""

FAMILIES = {family.model_type: family for make in (_text, _experts, _recurrent, _multimodal) for family in make()}
"""The families that are read and steered, by model type."""

QUICK = ("llama", "qwen3_5_text", "gemma4_text", "falcon", "deepseek_v3", "gpt_oss", "mamba", "jamba", "qwen2_5_vl",
         "mistral3", "gemma3", "llama4", "internvl")  # fmt: skip
"""The model types that are tested by default; ``-m slow`` tests the others."""


def table() -> list[str]:
    """The rows of the table in the docs."""
    rows = ["| family | model type in transformers | blocks | adapter in the test |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        targets = (
            family.targets if isinstance(family.targets, str) else ", ".join(f"`{name}`" for name in family.targets)
        )
        rows.append(f"| {family.name} | `{family.model_type}` | `{family.blocks}` | {targets} |")
    rows += [f"| {family.name} | `{family.model_type}` | refused | |" for family in SEVERAL_STREAMS]
    return rows
