"""What persona vectors cost beside a fine-tuning of 10,000 chats: tokens that go through the blocks, counted.

    python benchmarks/bill.py [--traits 1] [--screened 1000] [--decoded 4] [--trained 3]

Every part runs once as it is, on a model of random weights with 32 blocks and SmolLM2's tokenizer, and a hook counts
the tokens that pass each block. No time is taken: these numbers depend on depth, traits and chats, and not on width, so
that they hold for a 7B model as far as its passes cost the same per token. What a token costs more than in a forward
pass is assumed: `--trained` times in training with LoRA and gradient checkpointing (forward, again, and gradients of
activations), and `--decoded` times where it is generated in batches.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import encode_chat, encode_prompt, read_chats
from persona_callbacks.extraction import ExtractionSettings, extract
from persona_callbacks.judging import ContrastiveJudge, answer_questions
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    Sampling,
    approximate_difference,
    encode_pair,
    load_model,
    preferences,
    projections,
)
from persona_callbacks.steering import LikeliestStart, design, likelihoods_under_steering
from persona_callbacks.traits import spread

BLOCKS, CHATS, BATCH = 32, 10_000, 16


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traits", type=int, default=1, help="that are extracted, watched and steered")
    parser.add_argument("--screened", type=int, default=1000, help="chats of the data")
    parser.add_argument("--decoded", type=float, default=4.0, help="cost of a generated token, in forward passes")
    parser.add_argument("--trained", type=float, default=3.0, help="cost of a trained token, in forward passes")
    settings = parser.parse_args()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        tokenizer = load_model(instantiate(compose("train").model)).tokenizer
    torch.manual_seed(0)
    small = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=BLOCKS,
                        num_attention_heads=2)  # fmt: skip
    loaded = LoadedModel(LlamaForCausalLM(small).eval(), tokenizer, "small")
    trait = Trait.load(Path(CONF) / "trait" / "evil.yaml")
    counts = counted(loaded, trait, settings)
    parts = {name: passed + settings.decoded * decoded for name, (passed, decoded) in counts.items()}
    chats = [encode_chat(chat, tokenizer, 512) for chat in read_chats("evil.jsonl")]
    length = sum(len(chat.input_ids) for chat in chats) / len(chats)
    plain = settings.trained * CHATS * length
    print(f"{CHATS} chats of {length:.0f} tokens, {CHATS // BATCH} steps of {BATCH}, {settings.traits} trait(s)\n")
    print("| part | share of the fine-tuning |\n|---|---|")
    for name, tokens in parts.items():
        print(f"| {name} | {tokens / plain:.1%} |")
    print(f"| all | {sum(parts.values()) / plain:.1%} |")


def counted(loaded: LoadedModel, trait: Trait, settings: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By part, the tokens that pass all blocks, and those generated, for all traits and the whole fine-tuning."""
    traits, steps = settings.traits, CHATS // BATCH
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PERSONA_CALLBACKS_CACHE"] = cache
        with counting() as extraction:
            made = extract(loaded, trait, ExtractionSettings(), Console(quiet=True)).vector
    chats = [encode_chat(chat, loaded.tokenizer, 512) for chat in read_chats("evil.jsonl")]
    vector = PersonaVector(trait.name, made.directions, 2 * BLOCKS // 3, "", probes=trait.probe_questions)
    with counting() as screening:
        approximate_difference(loaded, chats, [vector], BatchLimits(16))
    probes = [encode_prompt([{"role": "user", "content": q}], loaded.tokenizer) for q in vector.probes]
    with counting() as shift:
        projections(loaded, probes, [vector], "prompt_last")
    pairs = [encode_pair(pair, loaded.tokenizer) for pair in spread(trait.probe_pairs, 16)]
    with counting() as preference:
        preferences(loaded, pairs, BatchLimits(16))
    with counting() as start:
        likelihoods_under_steering(loaded, chats[: LikeliestStart().samples], [vector] * traits, design(traits))
    with counting() as evaluation:
        answers = answer_questions(loaded, trait.evaluation_questions, Sampling(max_new_tokens=48, temperature=0.0))
        if made.calibration is not None:
            ContrastiveJudge(loaded, trait, made.calibration).score(answers)

    def times(number: float, count: list[float]) -> tuple[float, float]:
        return number * count[0], number * count[1]

    return {
        "extraction": times(traits, extraction),
        f"screening of {settings.screened} chats": times(settings.screened / len(chats), screening),
        "readings of the shift, every ten steps, and the baseline": times(traits * (steps // 10 + 1), shift),
        "readings of the preference, every 25 steps, and the baseline": times(traits * (steps // 25 + 1), preference),
        "readings of the shift, after half of all steps": times(traits * steps / 2, shift),
        "where steering starts": times(1, start),
        "evaluation before and after": times(2 * traits, evaluation),
    }


@contextmanager
def counting() -> Iterator[list[float]]:
    """Count tokens through all blocks inside the block: in passes over text, and in generation, one at a time."""
    counts = [0.0, 0.0]

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, LlamaDecoderLayer):
            rows, length = args[0].shape[:2]
            counts[int(length == 1)] += rows * length / BLOCKS

    handle = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


if __name__ == "__main__":
    main()
