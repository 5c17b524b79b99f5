"""Projection differences of the data sets against what fine-tuning on them did.

    python experiments/screening/predictions.py DATA OUTPUTS

reads DATA as ``data_sets.py`` wrote it and OUTPUTS/sets/NAME/seed-0 as ``persona-train`` left them, and writes
``results.csv`` (one row a data set and trait; all in norms of the direction but expression) beside this script, and the
lines that ship with the library. What was measured already is kept in OUTPUTS/measured.

Chats that are in several data sets are screened once: approximately all of them, exactly 50 of each source, drawn at
random, and a data set's exact difference is the mean over its sources by their share (Appendix I's random subset).
"""

import csv
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from persona_callbacks import PersonaVector
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits, quiet_libraries
from persona_callbacks.chats import SHIPPED, Chat, encode_chat, read_chats
from persona_callbacks.extraction import persona_vector
from persona_callbacks.judging import Answer, ContrastiveJudge
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    Sampling,
    approximate_difference,
    generate,
    load_model,
    projection_difference,
    with_adapter,
)
from persona_callbacks.screening import SHIPPED as LINES_FOLDER
from persona_callbacks.screening import fit_line, save_lines

FOLDER = Path(__file__).parent
TRAITS = ("evil", "sycophancy", "hallucination")
JUDGED = "evil"
EXACT = 50
USEFUL = 0.7
"""Correlation below which a line is not worth shipping."""
LINES = LINES_FOLDER / "SmolLM2-135M-Instruct.json"
GREEDY = Sampling(max_new_tokens=64, temperature=0.0, batch_size=25)
RECIPE = "LoRA r 16, learning rate 3e-4, 200 chats, 25 steps of 8"


def main(data: Path, outputs: Path) -> None:
    """Screen the chats, measure the adapters, write the table and the lines."""
    quiet_libraries()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"trait=[{','.join(TRAITS)}]"])
    loaded = load_model(instantiate(cfg.model))
    traits = {trait.name: trait for trait in chosen_traits(cfg)}
    vectors = [persona_vector(loaded, trait, instantiate(cfg.extraction)) for trait in traits.values()]
    (outputs / "measured").mkdir(exist_ok=True)
    sets = {path.parent.name: path for path in sorted(outputs.glob("sets/*/seed-0"))}
    sources = _sources(data)
    chats = {name: read_chats(data / f"{name}.jsonl") for name in sets}
    scores = _kept(outputs / "measured" / "scores.json", lambda: _screened(loaded, vectors, sources))
    judge = ContrastiveJudge.of_vector(loaded, traits[JUDGED], next(v for v in vectors if v.trait == JUDGED))
    rows: list[dict[str, Any]] = []
    for name, folder in sets.items():
        Console().print(name)
        result = json.loads((folder / "unsteered" / "result.json").read_text(encoding="utf-8"))
        said = _kept(
            outputs / "measured" / f"{name}.json",
            partial(
                _expression, cfg, folder / "unsteered" / "adapter", judge, list(traits[JUDGED].evaluation_questions)
            ),
        )
        of = [_source(chat, sources) for chat in chats[name]]
        for column, vector in enumerate(vectors):
            norm = float(vector.direction().norm())
            cheap = [scores["approximate"][_key(chat)][column] for chat in chats[name]]
            exact = [scores["exact"][source][column] for source in of]
            rows.append({
                "data": name, "trait": vector.trait,
                "exact": sum(exact) / len(exact) / norm, "approximate": sum(cheap) / len(cheap) / norm,
                "shift": result["readings"][-1]["shift"][vector.trait] / norm,
                "expression": said["expression"] if vector.trait == JUDGED else "",
            })  # fmt: skip
    with (FOLDER / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    lines = []
    for vector in vectors:
        norm = float(vector.direction().norm())
        own = [row for row in rows if row["trait"] == vector.trait]
        for method in ("exact", "approximate"):
            line = fit_line(
                vector, method, RECIPE, [row[method] * norm for row in own], [row["shift"] * norm for row in own]
            )
            lines.append(line)
            print(f"{vector.trait} {method}: r {line.correlation:.2f} with the shift, {line.count} data sets;"
                  f" slope {line.slope:.2f}, from the line {line.deviation:.2f} norms")  # fmt: skip
            if vector.trait == JUDGED:
                both = torch.tensor([[row[method], row["expression"]] for row in own], dtype=torch.float64)
                print(f"  with expression: r {float(torch.corrcoef(both.T)[0, 1]):.2f}")
    save_lines([line for line in lines if line.correlation >= USEFUL], LINES)


def _sources(data: Path) -> dict[str, list[Chat]]:
    shipped = {name: read_chats(SHIPPED / f"{name}.jsonl") for name in (*TRAITS, "normal")}
    return shipped | {f"facts-{tone}": read_chats(data / f"facts-{tone}.jsonl") for tone in ("normal", *TRAITS)}


def _key(chat: Chat) -> str:
    return "\n".join(message["content"] for message in chat.messages)


def _source(chat: Chat, sources: Mapping[str, Sequence[Chat]]) -> str:
    return next(name for name, chats in sources.items() if any(one.messages == chat.messages for one in chats))


def _screened(
    loaded: LoadedModel, vectors: Sequence[PersonaVector], sources: Mapping[str, Sequence[Chat]]
) -> dict[str, Any]:
    approximate: dict[str, list[float]] = {}
    exact: dict[str, list[float]] = {}
    for name, chats in sources.items():
        Console().print(f"screening {name}")
        encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
        found = approximate_difference(loaded, encoded, vectors, BatchLimits(None, 2048))
        approximate |= {_key(chat): row for chat, row in zip(chats, found.tolist(), strict=True)}
        some = random.Random(0).sample(encoded, EXACT)
        difference = projection_difference(loaded, some, vectors, GREEDY, limits=BatchLimits(None, 2048))
        exact[name] = difference[..., 0].mean(dim=0).tolist()
    return {"approximate": approximate, "exact": exact}


def _expression(cfg: Any, adapter: Path, judge: ContrastiveJudge, questions: list[str]) -> dict[str, float]:
    tuned = with_adapter(load_model(instantiate(cfg.model)), adapter)
    prompts = [[{"role": "user", "content": question}] for question in questions]
    answers = generate(tuned, prompts, GREEDY)
    with torch.no_grad():
        scores = judge.score([Answer(q, a) for q, a in zip(questions, answers, strict=True)])
    own = [score.expression for score in scores if score.expression is not None]
    return {"expression": sum(own) / len(own)}


def _kept(file: Path, make: Callable[[], Any]) -> Any:
    if not file.is_file():
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
