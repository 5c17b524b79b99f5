"""What preventative steering costs a training step: side by side in one process, steps with and without in turn.

    python benchmarks/steering.py [--device cuda] [--shape 7b] [--steps 30]

SmolLM2-135M with LoRA on batches of 1,024 tokens, or random weights in the shape of a 7B model in bfloat16. Steering is
at all layers with three traits. Prints the ratio of the medians, the share of steps by which it can vary by chance
(steps without, split in two halves), and the peak memory that steering adds on a GPU.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from persona_callbacks import PersonaVector
from persona_callbacks.apps.configs import CONF
from persona_callbacks.model import dimensions, load_model, residual
from persona_callbacks.vectors import steering_additions

SHAPE_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def main() -> None:
    """Time the steps, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=["smollm2", "7b"], default="smollm2")
    parser.add_argument("--steps", type=int, default=30, help="of each kind")
    settings = parser.parse_args()
    torch.manual_seed(0)
    if settings.shape == "7b":
        config = LlamaConfig(**SHAPE_7B, vocab_size=32000)
        with torch.device(settings.device):
            bare = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            bare = load_model(instantiate(compose("train").model)).model.to(settings.device)
    model = get_peft_model(bare, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    shape = dimensions(model)
    vectors = [
        PersonaVector(name, torch.randn(shape.num_layers + 1, shape.hidden_size) * 0.1, 1, shape.model_id)
        for name in ("evil", "sycophancy", "hallucination")
    ]
    additions = steering_additions(vectors, dict.fromkeys(("evil", "sycophancy", "hallucination"), 1.0), "all")
    ids = torch.randint(0, 30000, (8, 128), device=settings.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step() -> float:
        _wait(settings.device)
        started = time.perf_counter()
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(settings.device)
        return time.perf_counter() - started

    def steered_step() -> float:
        # Attached and detached around the step, so that the others run a model without any hook.
        writer = residual.ResidualWriter(model, sorted(additions))
        writer.write(additions)
        writer.silent_layers()
        writer.active = True
        try:
            return step()
        finally:
            writer.remove()

    for warm in (step, steered_step, step):
        warm()
    memory = [_peak(settings.device, run) for run in (step, steered_step)]
    plain, steered = [], []
    for _ in range(settings.steps):
        plain.append(step())
        steered.append(steered_step())
        plain.append(step())
    chance = statistics.median(plain[0::2]) / statistics.median(plain[1::2])
    print(f"steps of {8 * 128} tokens, {shape.num_layers} layers of width {shape.hidden_size}, three traits")
    ratio = statistics.median(steered) / statistics.median(plain)
    print(f"steered over unsteered, medians of {len(steered)}: {ratio:.3f}")
    print(f"unsteered over unsteered: {chance:.3f}")
    if settings.device != "cpu":
        directions = sum(addition.numel() * addition.element_size() for addition in additions.values())
        print(f"peak memory added: {memory[1] - memory[0]} bytes ({directions} in one direction a layer)")


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _peak(device: str, run: object) -> int:
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    run()  # type: ignore[operator]
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
