"""What reading preference costs, in training steps: both in one process, in turn.

    python benchmarks/preference.py [--device cuda] [--pairs 16] [--rounds 15]

SmolLM2-135M with LoRA, batches of 8 chats of the villain data as persona-train makes them, and the minimal pairs of one
trait. Prints the ratio of the medians, and what probes alone cost.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from peft import LoraConfig, get_peft_model

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import encode_chat, encode_prompt, pad, pad_token, read_chats
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    dimensions,
    encode_pair,
    load_model,
    preferences,
    probing,
    projections,
)


def main() -> None:
    """Time steps and readings, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trait", default="evil")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    settings = parser.parse_args()
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loaded = load_model(instantiate(compose("train").model))
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model.to(settings.device), config).train()
    tuned = LoadedModel(model, loaded.tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    chats = [encode_chat(chat, loaded.tokenizer) for chat in read_chats("evil.jsonl")[: 8 * settings.rounds]]
    batches = [
        {
            name: part.to(settings.device)
            for name, part in pad(chats[row : row + 8], pad_token(loaded.tokenizer)).items()
        }
        for row in range(0, len(chats), 8)
    ]
    trait = Trait.load(Path(CONF) / "trait" / f"{settings.trait}.yaml")
    pairs = [encode_pair(pair, loaded.tokenizer) for pair in trait.probe_pairs[: settings.pairs]]
    probes = [encode_prompt([{"role": "user", "content": q}], loaded.tokenizer) for q in trait.probe_questions]
    shape = dimensions(model)
    vector = PersonaVector(trait.name, torch.ones(shape.num_layers + 1, shape.hidden_size), shape.num_layers // 2, "")

    def step(number: int) -> None:
        model(**batches[number % len(batches)], use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def read_pairs(_: int) -> None:
        with probing(model):
            preferences(tuned, pairs, BatchLimits(20))

    def read_probes(_: int) -> None:
        projections(tuned, probes, [vector], "prompt_last", limits=BatchLimits(20))

    kinds: dict[str, Callable[[int], None]] = {"step": step, "pairs": read_pairs, "probes": read_probes}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(-1, settings.rounds):  # the first round warms up
        for name, run in kinds.items():
            started = time.perf_counter()
            run(number)
            if settings.device != "cpu":
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    tokens = statistics.mean(batch["input_ids"].numel() for batch in batches)
    print(f"a training step on 8 chats, {tokens:.0f} tokens on average: {median['step']:.2f} s")
    print(f"{len(pairs)} pairs of {trait.name}: {median['pairs'] / median['step']:.2f} training steps")
    print(f"{len(probes)} probes of {trait.name}: {median['probes'] / median['step']:.2f} training steps")


if __name__ == "__main__":
    main()
