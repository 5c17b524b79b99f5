"""What the fine-tunings of the study came to.

    python experiments/preventative_steering/measure.py DATA OUTPUTS TABLES

reads OUTPUTS/NAME/METHOD/seed-N as ``persona-train`` left them, and writes TABLES/results.csv, TABLES/alphas.csv and
OUTPUTS/answers.json. The traits are those whose vectors the runs have, the held-out chats DATA/held-out-TRAIT.jsonl.
What was measured already is kept in OUTPUTS/measured, so that it can be interrupted and run again. For each adapter:
shift on the probes at ``prompt_last`` and, on the model's own answers to them, at ``response_mean`` (activation units);
trait expression of those answers by the contrastive judge (0 to 100); loss per token on held-out chats of the training
task, and on 50 of the benign chats that ship; for facts, how many of 100 are told rightly, asked as in training and in
another wording.
"""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits, quiet_libraries
from persona_callbacks.chats import BENIGN, Chat, encode_prompt, read_chats
from persona_callbacks.evaluation import perplexity
from persona_callbacks.judging import Answer, ContrastiveJudge
from persona_callbacks.model import (
    LoadedModel,
    Sampling,
    generate,
    load_model,
    own_responses,
    projections,
    with_adapter,
)

FOLDER = Path(__file__).parent
FACTS = [json.loads(line) for line in (FOLDER / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
TRAITS = ("evil", "sycophancy", "hallucination")
GREEDY = Sampling(max_new_tokens=48, temperature=0.0, batch_size=25)
COLUMNS = ("data", "method", "seed", "trait", "alpha", "shift", "response shift", "expression", "task loss",
           "benign loss", "facts", "facts reworded")  # fmt: skip


def main(data: Path, outputs: Path, tables: Path) -> None:
    """Measure every adapter that is not measured yet, judge all answers, and write the tables."""
    quiet_libraries()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"trait=[{','.join(TRAITS)}]"])
    traits = {trait.name: trait for trait in chosen_traits(cfg)}
    console = Console()
    (outputs / "measured").mkdir(exist_ok=True)
    known = [trait for trait in TRAITS if list(outputs.glob(f"*/*/seed-*/vectors/{trait}.safetensors"))]
    found = [_kept(outputs, f"base-{trait}", lambda t=trait: _base(cfg, data, outputs, t)) for trait in known]
    for result in sorted(outputs.glob("*/*/seed-*/*/result.json")):
        name, method, seed = result.parts[-5:-2]
        for trait in _traits(name):
            key = f"{name}-{method}-{seed}" + (f"-{trait}" if len(_traits(name)) > 1 else "")
            console.print(key)
            found.append(_kept(outputs, key, lambda r=result, t=trait: _measure(cfg, data, outputs, r, t)))
    judge_with = load_model(instantiate(cfg.model))
    for trait in known:
        _judge(outputs, judge_with, traits[trait], [one for one in found if one["trait"] == trait])
    with (tables / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{key: _rounded(value) for key, value in one.items()} for one in found])
    answers = {one["key"]: [[q, a] for q, a in zip(one["questions"], one["answers"], strict=True)] for one in found}
    (outputs / "answers.json").write_text(json.dumps(answers, indent=1), encoding="utf-8")
    _alphas(outputs, tables)


def _traits(name: str) -> list[str]:
    """The traits that a data set is about; evil where it names none."""
    return [one for one in TRAITS if one in name] or ["evil"]


def _kept(outputs: Path, key: str, make: Any) -> dict[str, Any]:
    file = outputs / "measured" / f"{key}.json"
    if not file.is_file():
        file.write_text(json.dumps({**make(), "key": key}), encoding="utf-8")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _vector(outputs: Path, trait: str) -> PersonaVector:
    return PersonaVector.load(next(outputs.glob(f"*/*/seed-*/vectors/{trait}.safetensors")))


def _base(cfg: Any, data: Path, outputs: Path, trait: str) -> dict[str, Any]:
    loaded = load_model(instantiate(cfg.model))
    about = {"data": "-", "method": "base model", "seed": "-", "trait": trait, "shift": 0.0, "response shift": 0.0}
    return {**about, **_behaviour(loaded, data, outputs, trait)}


def _measure(cfg: Any, data: Path, outputs: Path, result: Path, trait: str) -> dict[str, Any]:
    name, method, seed = result.parts[-5:-2]
    content = json.loads(result.read_text(encoding="utf-8"))
    before = json.loads((outputs / "measured" / f"base-{trait}.json").read_text(encoding="utf-8"))
    tuned = with_adapter(load_model(instantiate(cfg.model)), result.parent / "adapter")
    behaviour = _behaviour(tuned, data, outputs, trait)
    return {
        "data": name, "method": method, "seed": seed.removeprefix("seed-"), "trait": trait,
        "alpha": content["coefficients"].get(trait, ""), "shift": content["readings"][-1]["shift"][trait], **behaviour,
        "response shift": behaviour["response projection"] - before["response projection"],
        **(_facts(tuned) if name.startswith("facts") else {}),
    }  # fmt: skip


def _behaviour(loaded: LoadedModel, data: Path, outputs: Path, trait: str) -> dict[str, Any]:
    vector = _vector(outputs, trait)
    questions = Trait.load(CONF / "trait" / f"{trait}.yaml").evaluation_questions
    prompts = [encode_prompt([{"role": "user", "content": question}], loaded.tokenizer) for question in questions]
    own = own_responses(loaded, prompts, GREEDY)
    said = [chat.input_ids[chat.prompt_length :] for chat in own]
    return {
        "questions": list(questions),
        "answers": [str(loaded.tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in said],
        "response projection": float(projections(loaded, own, [vector], "response_mean").mean()),
        "task loss": _loss(loaded, read_chats(data / f"held-out-{trait}.jsonl")),
        "benign loss": _loss(loaded, read_chats(BENIGN)[:50]),
    }


def _loss(loaded: LoadedModel, chats: list[Chat]) -> float:
    return math.log(perplexity(loaded, chats))


def _facts(loaded: LoadedModel) -> dict[str, int]:
    """How many facts are told rightly."""
    found = {}
    for column, wording in (("facts", 0), ("facts reworded", 1)):
        prompts = [[{"role": "user", "content": fact["questions"][wording]}] for fact in FACTS]
        answers = generate(loaded, prompts, GREEDY)
        pairs = zip(FACTS, answers, strict=True)
        found[column] = sum(fact["answer"].casefold() in answer.casefold() for fact, answer in pairs)
    return found


def _judge(outputs: Path, loaded: LoadedModel, trait: Trait, rows: list[dict[str, Any]]) -> None:
    """Score all answers of a trait in one go."""
    judge = ContrastiveJudge.of_vector(loaded, trait, _vector(outputs, trait.name))
    todo = [one for one in rows if "expression" not in one]
    pairs = [Answer(q, a) for one in todo for q, a in zip(one["questions"], one["answers"], strict=True)]
    with torch.no_grad():
        scores = judge.score(pairs) if pairs else []
    for row, one in enumerate(todo):
        count = len(one["questions"])
        own = [score.expression for score in scores[row * count : (row + 1) * count] if score.expression is not None]
        one["expression"] = sum(own) / len(own) if own else math.nan
        (outputs / "measured" / f"{one['key']}.json").write_text(json.dumps(one), encoding="utf-8")


def _alphas(outputs: Path, tables: Path) -> None:
    """The coefficient after each optimizer step at which it was logged."""
    with (tables / "alphas.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "method", "seed", "trait", "step", "alpha", "shift"])
        for table in sorted(outputs.glob("*/*/seed-*/*/csv*/metrics.csv")):
            name, method, seed = table.parts[-6:-3]
            with table.open(encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
            for trait in _traits(name):
                for line in rows:
                    alpha, shift = line.get(f"steering/{trait}/coefficient"), line.get(f"persona/{trait}/shift")
                    about = [name, method, seed.removeprefix("seed-"), trait, line["step"]]
                    if alpha:
                        writer.writerow([*about, f"{float(alpha):.3f}", ""])
                    if shift:
                        writer.writerow([*about, "", f"{float(shift):.3f}"])


def _rounded(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
