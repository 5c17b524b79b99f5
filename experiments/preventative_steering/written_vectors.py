"""Persona vectors from written responses, for traits that the model cannot act out on instruction.

    python experiments/preventative_steering/written_vectors.py FOLDER

SmolLM2-135M hardly follows the instructions for sycophancy and hallucination: vectors from its own responses point
elsewhere (experiments/extraction). ``facts.jsonl`` says each of 100 invented facts plainly and in the tone of each
trait; the vectors here are the mean activation over the latter minus the mean over the former, to the same questions.
Probes, and the judge's calibration, are those of the extracted vectors. FOLDER gets ``TRAIT.safetensors``.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits
from persona_callbacks.chats import Chat, EncodedChat, encode_chat
from persona_callbacks.extraction import Contrast, persona_vector, steering_effect
from persona_callbacks.model import activations, load_model
from persona_callbacks.vectors import Counts, Evidence

FACTS = Path(__file__).parent / "facts.jsonl"
TRAITS = ("evil", "sycophancy", "hallucination")


def main(folder: Path) -> None:
    """Make the vectors of all three traits."""
    console = Console()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"trait=[{','.join(TRAITS)}]"])
    loaded = load_model(instantiate(cfg.model), console)
    facts = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]

    def encoded(kind: str) -> list[EncodedChat]:
        return [
            encode_chat(
                Chat(({"role": "user", "content": fact["questions"][0]}, {"role": "assistant", "content": fact[kind]})),
                loaded.tokenizer,
            )
            for fact in facts
        ]

    plain = encoded("normal")
    for trait in chosen_traits(cfg):
        extracted = persona_vector(loaded, trait, instantiate(cfg.extraction), console)
        chats = [*encoded(trait.name), *plain]
        shows = torch.arange(len(chats)) < len(facts)
        rows = extracted.num_layers + 1
        contrast = Contrast(shows, torch.arange(len(facts)).repeat(2), 1, rows, extracted.hidden_size)
        read = activations(loaded, chats, list(range(rows)), ["response_mean"])
        contrast.add(range(len(chats)), read.cpu())
        directions, separation = contrast.directions(0), contrast.separation(0)
        with torch.no_grad():
            effects = steering_effect(loaded, chats[:100:3], plain[::3], directions)
        layer = max(effects, key=effects.__getitem__)
        vector = replace(
            extracted,
            directions=directions,
            layer=layer,
            counts=Counts(len(facts), len(facts)),
            evidence=Evidence(
                auc=tuple(separation.auc.tolist()),
                split_half_cosine=tuple(separation.split_half_cosine.tolist()),
                steering_effect=effects,
            ),
        )
        vector.save(folder / f"{trait.name}.safetensors")
        cosine = torch.cosine_similarity(vector.direction(), extracted.direction(layer), dim=0)
        console.print(
            f"{trait.name}: layer {layer} (extracted {extracted.layer}), AUC {separation.auc[layer]:.2f}, cosine of"
            f" halves {separation.split_half_cosine[layer]:.2f}, with the extracted vector {cosine:.2f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
