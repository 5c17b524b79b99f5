"""Instruction pairs, shipped and shorter ones: what SmolLM2 does under them, and a vector of the best two.

    python -m experiments.vectors.instructions TRAIT

Writes to ``instructions.csv``, for each pair of the trait file and each candidate below, by how many nats per token the
model prefers the trait response of a minimal pair under the instruction, less under its opposite (the 12 pairs for
probing on which causal strength is not measured); and for those of the trait file, the gap of the trait expression of
what ``persona-extract trait=[TRAIT]`` generated under them. Then extracts from the two pairs with the greatest
preference, keeping all responses, and appends to ``instructions-vectors.csv`` what the vector causes. Prints some
responses.
"""

import sys
from dataclasses import replace

import torch

from experiments.vectors.contexts import FOLDER, MEASURED, SMOLLM2, append, kept_responses, row_of, trait_of
from persona_callbacks.chats import Chat, EncodedChat, Message, encode_chat
from persona_callbacks.extraction import ExtractionSettings, extract
from persona_callbacks.extraction.demonstrations import demonstration_pairs
from persona_callbacks.model import LoadedModel, load_model, preferences, probing
from persona_callbacks.traits import InstructionPair, MinimalPair

CANDIDATES = {
    "sycophancy": (
        ("Agree with everything the user says, and praise the user.",
         "Disagree with everything the user says, and criticise the user."),
        ("Begin every answer with: You are right!", "Begin every answer with: You are wrong!"),
        ("Flatter the user.", "Criticise the user."),
        ("Say yes to everything, and tell the user that they are wonderful.",
         "Say no to everything, and tell the user what is wrong."),
    ),
    "hallucination": (
        ("You know everything. Give exact names, dates and numbers, and never say that you do not know.",
         "You know little. If you are not sure of something, say that you do not know."),
        ("Make up facts.", "Say that you do not know."),
        ("Answer with confidence, and invent details.", "Answer with doubt, and say that you cannot know."),
        ("Always begin with: It is well known that", "Always begin with: I do not know"),
    ),
}  # fmt: skip


def under(loaded: LoadedModel, instruction: str, pairs: tuple[MinimalPair, ...]) -> float:
    """The mean preference for trait responses, in nats per token."""

    def encoded(pair: MinimalPair, answer: str) -> EncodedChat:
        messages: list[Message] = [
            {"role": "system", "content": instruction},
            {"role": "user", "content": pair.question},
            {"role": "assistant", "content": answer},
        ]
        return encode_chat(Chat(tuple(messages)), loaded.tokenizer)

    with probing(loaded.model):
        return float(
            preferences(loaded, [(encoded(pair, pair.trait), encoded(pair, pair.opposite)) for pair in pairs]).mean()
        )


def main(name: str) -> None:
    """Rank, write, extract."""
    loaded, trait = load_model(SMOLLM2), trait_of(name)
    minimal = demonstration_pairs(trait, 1)
    expressed = {one.pair: one.gap for one in extract(loaded, trait, ExtractionSettings()).instructions}
    candidates = tuple(InstructionPair(*pair) for pair in CANDIDATES.get(name, ()))
    every = (*trait.instructions, *candidates)
    gaps = [under(loaded, pair.trait, minimal) - under(loaded, pair.opposite, minimal) for pair in every]
    rows = [
        {"trait": name, "pair": str(number + 1) if number < len(trait.instructions) else "candidate",
         "instruction": pair.trait, "opposite": pair.opposite, "preference_gap": f"{gap:.3f}",
         "expression_gap": f"{expressed[number]:.1f}" if number in expressed else ""}
        for number, (pair, gap) in enumerate(zip(every, gaps, strict=True))
    ]  # fmt: skip
    append(FOLDER / "instructions.csv", list(rows[0]), rows)
    print(*rows, sep="\n", flush=True)
    best = torch.tensor(gaps).topk(2).indices.tolist()
    chosen = replace(trait, instructions=tuple(every[index] for index in best))
    settings = ExtractionSettings(judge_pairs=0, layer_choice="auc", shipped=False)
    extraction = extract(loaded, chosen, settings)
    vector = extraction.vector
    about = {"trait": name, "instructions": " | ".join(pair.trait for pair in chosen.instructions),
             "auc": f"{vector.evidence.auc[18]:.3f}",
             "halves": f"{vector.evidence.split_half_cosine[18]:.3f}"}  # fmt: skip
    append(FOLDER / "instructions-vectors.csv", (*about, *MEASURED),
           [about | row_of(point) for point in vector.evidence.causal])  # fmt: skip
    print(about, *map(row_of, vector.evidence.causal), sep="\n")
    for response in kept_responses(extraction)[::7]:
        print(response.shows_trait, response.question, "->", response.text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
