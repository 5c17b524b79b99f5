"""What every sensor says of every adapter of the study.

    python experiments/instruments/sensors.py OUTPUTS VECTORS MEASURED [MOST]
    python experiments/instruments/sensors.py OUTPUTS VECTORS MEASURED MOST sample

reads the adapters in OUTPUTS/TRAIT/DATA/METHOD as ``train.sh`` left them, and writes MEASURED/TRAIT/DATA-METHOD.json
for each and MEASURED/TRAIT/base.json: an adapter for its own trait, and one of benign data for all three. What is
measured already is left alone, so that it can be interrupted and run again; MOST is how many are measured in one call.

Measured are: greedy answers to the trait's evaluation questions, with the judge's expression of each and the projection
of its prompt's last token and of its response; the projection of the trait's probe questions at ``prompt_last`` and
``prompt_mean``; which response of minimal pairs is preferred (the first 24 are the half for probing), and of pairs in
the model's own voice; and the trait's probability in forced choices. Nothing is yet less the base model's.

The second form samples answers instead, twice to each evaluation question, and writes them to
MEASURED/TRAIT/sampled/DATA-METHOD.json. After few steps greedy answers hide what was learned: an adapter that gives
half of its probability to malice may never begin with it.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits, quiet_libraries
from persona_callbacks.chats import Chat, encode_chat, encode_prompt
from persona_callbacks.evaluation import choose, pair_differences, shipped_forced_choices
from persona_callbacks.files import write_json
from persona_callbacks.judging import Answer, ContrastiveJudge, answer_questions
from persona_callbacks.model import LoadedModel, Sampling, load_model, projections, with_adapter
from persona_callbacks.traits import MinimalPair

TRAITS = ("evil", "sycophancy", "hallucination")
BENIGN = ("normal", "warm", "terse", "formal", "emphatic", "poetic")
ANSWERS = Sampling(max_new_tokens=40, temperature=0.0, batch_size=20)
SAMPLED = Sampling(max_new_tokens=30, temperature=0.8, batch_size=40, seed=0)
SAMPLES = 2
VOICE_PAIRS = 20
FORCED_CHOICES = 40


@dataclass(frozen=True)
class Run:
    """An adapter, or the base model if it has no folder, to be measured for a trait."""

    trait: str
    data: str
    method: str = ""
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Names the file of its measurements."""
        return f"{self.data}-{self.method}" if self.method else self.data


def main(outputs: Path, vectors: Path, measured: Path, most: int, *, sampled: bool) -> None:
    """Measure what is not measured yet."""
    quiet_libraries()
    console = Console()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"trait=[{','.join(TRAITS)}]"])
    traits = {trait.name: trait for trait in chosen_traits(cfg)}
    targets = {run: measured / run.trait / ("sampled" if sampled else "") / f"{run.name}.json" for run in runs(outputs)}
    missing = [run for run, target in targets.items() if not target.is_file()]
    if sampled:  # what benign styles say is read once
        missing = [run for run in missing if _is_read(run) or run.trait == "evil"]
    for run in missing[:most]:
        console.print(f"{run.trait}: {run.name}", highlight=False)
        loaded = load_model(instantiate(cfg.model))
        if run.folder:
            loaded = with_adapter(loaded, run.folder / "adapter")
        targets[run].parent.mkdir(parents=True, exist_ok=True)
        trait = traits[run.trait]
        if sampled:
            said = answer_questions(loaded, trait.evaluation_questions * SAMPLES, SAMPLED)
            write_json(targets[run], [[answer.question, answer.response] for answer in said])
            continue
        vector = PersonaVector.load(vectors / f"{run.trait}.safetensors")
        voice = own_voice(vectors / f"{run.trait}.responses.jsonl")
        content = measure(loaded, trait, vector, voice, with_answers=_is_read(run))
        coefficient = None
        if run.folder:
            [coefficient] = json.loads((run.folder / "result.json").read_text())["coefficients"].values() or [None]
        write_json(targets[run], {"data": run.data, "method": run.method, "coefficient": coefficient, **content})


def runs(outputs: Path) -> list[Run]:
    """The base model and all finished adapters, by trait."""
    listed = []
    for trait in TRAITS:
        listed.append(Run(trait, "base"))
        for result in sorted(outputs.glob("*/*/*/*/result.json")):
            of, data, method = result.parent.parent.relative_to(outputs).parts
            if of == trait or data in BENIGN:
                listed.append(Run(trait, data, method, result.parent))
    return listed


def _is_read(run: Run) -> bool:
    """Whether its greedy answers will be labelled: benign styles are for false alarms of the sensors."""
    return run.data not in BENIGN[1:]


def own_voice(responses: Path) -> list[MinimalPair]:
    """Pairs of kept contrastive responses of the base model, made under the two instructions of one pair."""
    kept = [row for row in map(json.loads, responses.read_text().split("\n")[:-1]) if row["kept"]]
    sides = [
        {(row["question"], row["pair"]): row["text"] for row in kept if row["shows_trait"] == side}
        for side in (True, False)
    ]
    shared = sorted(sides[0].keys() & sides[1].keys())
    step = max(1, len(shared) // VOICE_PAIRS)
    return [MinimalPair(key[0], sides[0][key], sides[1][key]) for key in shared[::step][:VOICE_PAIRS]]


def measure(
    loaded: LoadedModel, trait: Trait, vector: PersonaVector, voice: Sequence[MinimalPair], *, with_answers: bool
) -> dict[str, Any]:
    """All sensors on a model as it is."""
    choices = [choice for choice in shipped_forced_choices(trait.name) if not choice.control]
    step = len(choices) // FORCED_CHOICES
    choices = [replace(choice, neutral="") for choice in choices[::step][:FORCED_CHOICES]]
    seconds: dict[str, float] = {}
    # Likelihoods hardly change in bfloat16, and take less than half the time.
    with torch.autocast("cpu", torch.bfloat16):
        with _timed(seconds, "minimal_pairs"):
            minimal = pair_differences(loaded, [*trait.probe_pairs, *trait.evaluation_pairs])
        with _timed(seconds, "own_voice"):
            in_voice = pair_differences(loaded, voice)
        with _timed(seconds, "forced_choice"):
            chosen = choose(loaded, choices)
    prompts = [encode_prompt([{"role": "user", "content": probe}], loaded.tokenizer) for probe in vector.probes]
    with _timed(seconds, "prompt_last"):
        last = projections(loaded, prompts, [vector], "prompt_last").flatten().tolist()
    mean = projections(loaded, prompts, [vector], "prompt_mean").flatten().tolist()
    return {
        "prompt_last": _rounded(last),
        "prompt_mean": _rounded(mean),
        "minimal_pairs": _rounded(minimal),
        "own_voice": _rounded(in_voice),
        "forced_choice": _rounded(choice.probability for choice in chosen),
        "answers": _answers(loaded, trait, vector, seconds) if with_answers else [],
        "seconds": seconds,
    }


def _answers(
    loaded: LoadedModel, trait: Trait, vector: PersonaVector, seconds: dict[str, float]
) -> list[dict[str, Any]]:
    with _timed(seconds, "generation"):
        answers = [
            answer for answer in answer_questions(loaded, trait.evaluation_questions, ANSWERS) if answer.response
        ]
    chats = [encode_chat(_chat(answer), loaded.tokenizer) for answer in answers]
    last = projections(loaded, chats, [vector], "prompt_last").flatten().tolist()
    with _timed(seconds, "response_mean"):
        response = projections(loaded, chats, [vector], "response_mean").flatten().tolist()
    with torch.autocast("cpu", torch.bfloat16), _timed(seconds, "judge"):
        scores = ContrastiveJudge.of_vector(loaded, trait, vector).score(answers)
    return [
        {
            "question": answer.question,
            "answer": answer.response,
            "expression": None if score.expression is None else round(score.expression, 2),
            "prompt_last": round(last[row], 3),
            "response_mean": round(response[row], 3),
        }
        for row, (answer, score) in enumerate(zip(answers, scores, strict=True))
    ]


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Note how much of the processor's time the body takes, whatever else runs on it."""
    before = time.process_time()
    yield
    seconds[what] = round(time.process_time() - before, 2)


def _chat(answer: Answer) -> Chat:
    return Chat(({"role": "user", "content": answer.question}, {"role": "assistant", "content": answer.response}))


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


if __name__ == "__main__":
    most = int(sys.argv[4]) if len(sys.argv) > 4 else 1000
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), most, sampled=sys.argv[5:] == ["sample"])
