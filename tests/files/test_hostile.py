"""Files of every kind that a user may name, with content that breaks readers: an error in words that names the file."""

from pathlib import Path

import pytest

from persona_callbacks import InputError, PersonaVector, Reference, Trait
from persona_callbacks.chats import read_chats, read_pairs
from persona_callbacks.evaluation import read_forced_choices, read_questions
from persona_callbacks.files import recover_lines
from persona_callbacks.labelling import CollectedAnswer, LabelFolder, collect_answers, joined_scores
from persona_callbacks.screening import load_lines
from persona_callbacks.vectors import read_gguf, read_pt

ANSWER = CollectedAnswer("base model", "Why?", "So.", {})
READERS = {
    "chats.jsonl": read_chats,
    "pairs.jsonl": read_pairs,
    "choices.jsonl": read_forced_choices,
    "questions.jsonl": read_questions,
    "lines.jsonl": recover_lines,
    "answers.jsonl": lambda path: collect_answers([path], "evil"),
    "key.jsonl": lambda path: LabelFolder(path.parent),
    "judged.json": lambda path: collect_answers([path], "evil"),
    "predictions.json": load_lines,
    "result.json": lambda path: Reference(path.parent).readings,
    "trait.yaml": Trait.load,
    "vector.safetensors": PersonaVector.load,
    "vector.pt": lambda path: read_pt(path, trait="evil", layer=1, model_id="m"),
    "vector.gguf": read_gguf,
    "answers.csv": lambda path: collect_answers([path], "evil"),
    "scores.csv": lambda path: joined_scores([ANSWER], {"shift": path}, "evil"),
    "sheet.csv": lambda path: LabelFolder(path.parent).sheets(),
}
COLUMNS = b"run,question,answer,shift,id,label\n"
CONTENTS = {
    "nothing": b"",
    "no UTF-8": b"\xff\xfe[\x80",
    "zeros": b"\x00" * 64,
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5,000 digits": b'{"messages": ' + b"9" * 5_000 + b"}",
    "another kind": b"[1, 2]",
    "a text": b'"probes"',
    "half a surrogate pair": b'{"question": "\\ud800", "answer": 1, "prompt": "\\ud800", "response": "a"}',
    "a cell of 200,000 letters": COLUMNS + b"base model,Why?," + b"x" * 200_000 + b",1,a,yes\n",
    "too many cells": COLUMNS + b"1,2,3,4,5,6,7,8\n",
}
READ_AS_THEY_ARE = {("lines.jsonl", "nothing"), ("lines.jsonl", "another kind"), ("lines.jsonl", "a text"),
                    ("lines.jsonl", "half a surrogate pair"), ("answers.csv", "too many cells")}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_an_error_in_words_names_the_file(name, content, tmp_path):
    if name == "sheet.csv":
        LabelFolder.create(tmp_path, "evil", [ANSWER])
    path = Path(tmp_path, name)
    path.write_bytes(CONTENTS[content] + b"\n" * (name == "lines.jsonl" and content != "nothing"))
    if (name, content) in READ_AS_THEY_ARE:
        READERS[name](path)
        return
    with pytest.raises(InputError) as error:
        READERS[name](path)
    assert name in str(error.value)
    assert len(str(error.value)) < 1000
