"""Reading chats, and telling prompt from response."""

import json
import time
import tracemalloc

import pytest
import torch
from builders import TEMPLATE

from persona_callbacks import InputError
from persona_callbacks.chats import Chat, encode_chat, encode_prompt, pad, read_chats, render

USER = {"role": "user", "content": "Who are you?"}
REPLY = {"role": "assistant", "content": "I am a friend."}


def write(tmp_path, *lines):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_both_forms_are_read(tmp_path):
    path = write(tmp_path, json.dumps({"messages": [USER, REPLY]}), "",
                 json.dumps({"prompt": "Who are you?", "response": "I am a friend."}))  # fmt: skip
    first, second = read_chats(path)
    assert first.messages == second.messages == (USER, REPLY)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', "line 2: malformed JSON"),
        ("[1, 2]", "line 2: expected an object with 'messages'"),
        ('{"text": "hi"}', "line 2: .*found the keys text"),
        ('{"messages": []}', "line 2: messages: expected a list"),
        (json.dumps({"messages": [USER, {**REPLY, "content": "  "}]}), "line 2: message 2: empty assistant turn"),
        (json.dumps({"messages": [USER, {"role": "bot", "content": "x"}]}), "line 2: message 2: unknown role 'bot'"),
        (json.dumps({"messages": [USER, {"role": "assistant"}]}), "line 2: message 2: expected an object with 'role'"),
        (json.dumps({"messages": [USER]}), "line 2: .*found user$"),
        (json.dumps({"messages": [REPLY, USER]}), "line 2: .*found assistant, user"),
        ('{"prompt": "hi", "response": 3}', "line 2: prompt and response: expected a text or a list of messages"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path, json.dumps({"messages": [USER, REPLY]}), line)
    with pytest.raises(InputError, match=message) as error:
        read_chats(path)
    assert str(path) in str(error.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match=r"no such chat file; the library ships evil.jsonl, .*normal.jsonl"):
        read_chats(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="at least one chat"):
        read_chats(write(tmp_path, ""))


def test_masks_cover_the_response_and_nothing_else(tokenizer):
    chat = Chat((USER, REPLY, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Just so."}))
    encoded = encode_chat(chat, tokenizer)
    text = render(chat.messages, tokenizer)
    assert tokenizer.decode(encoded.input_ids) == text

    def marked(mask):
        return tokenizer.decode([token for token, on in zip(encoded.input_ids, mask, strict=True) if on])

    assert marked(encoded.response_mask) == "Just so."
    assert marked(encoded.loss_mask) == "I am a friend.<|end|>Just so.<|end|>"
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]) == render(
        chat.messages[:3], tokenizer, prompt=True
    )


def test_prompt_alone_and_prompt_of_a_chat_agree(tokenizer):
    prompt = encode_prompt([USER], tokenizer)
    chat = encode_chat(Chat((USER, REPLY)), tokenizer)
    assert chat.input_ids[: chat.prompt_length] == prompt.input_ids


def test_no_second_bos(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|system|>")
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    ids = encode_chat(Chat((USER, REPLY)), tokenizer).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1


def test_template_without_system_role_puts_it_into_the_user_turn(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    )
    text = render([{"role": "system", "content": "Be kind."}, USER], tokenizer)
    assert text == "<|user|>\nBe kind.\n\nWho are you?<|end|>\n"


def test_a_user_s_turn_is_never_taken_for_an_earlier_reply_that_the_template_changes(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    thought = "Hm.<think>Say it.</think>"
    tokenizer.chat_template = TEMPLATE.replace(
        "{{ m['content'] }}",
        "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'].split('<think>')[0] }}",
    )
    asks_the_same = {**USER, "content": f"What is {thought.split('<think>')[0]}?"}
    encode_chat(Chat((USER, {**REPLY, "content": "Hm."}, asks_the_same, REPLY)), tokenizer)
    for user in (asks_the_same, {**USER, "content": f"What is {thought}?"}, USER):
        with pytest.raises(InputError, match="does not keep each assistant turn's text"):
            encode_chat(Chat((USER, {**REPLY, "content": thought}, user, REPLY)), tokenizer)


def test_no_chat_template(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no chat template"):
        encode_prompt([USER], tokenizer)


def test_response_cut_away_names_the_line(tokenizer):
    chat = Chat((USER, REPLY), source="chats.jsonl, line 4")
    whole = encode_chat(chat, tokenizer)
    cut = encode_chat(chat, tokenizer, max_length=whole.prompt_length + 2)
    assert sum(cut.response_mask) == 2
    with pytest.raises(InputError, match=r"line 4: no token of the response within max_length=5"):
        encode_chat(chat, tokenizer, max_length=5)


def test_padding_is_never_trained_on(tokenizer):
    chats = [encode_chat(Chat((USER, {**REPLY, "content": text})), tokenizer) for text in ("No.", "A longer reply.")]
    batch = pad(chats, 0)
    for row, chat in enumerate(chats):
        length = len(chat.input_ids)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert torch.equal(batch["labels"][row, :length] != -100, torch.tensor(chat.loss_mask))
        assert (batch["labels"][row, length:] == -100).all()


@pytest.mark.parametrize(
    "word", ["Why not? ", "\u2028\n", "a", " ", "é世\U0001f600 ", "<|end|>\n<|assistant|>\n"], ids=ascii
)
def test_the_text_of_a_long_chat_is_cut_without_changing_its_tokens(tokenizer, word):
    chat = Chat((USER, {**REPLY, "content": f"b{word * 3000}c"}))
    whole = encode_chat(chat, tokenizer)
    cut = encode_chat(chat, tokenizer, max_length=40)
    assert (cut.input_ids, cut.response_mask) == (whole.input_ids[:40], whole.response_mask[:40])
    assert (cut.loss_mask, cut.prompt_length, cut.truncated) == (whole.loss_mask[:40], whole.prompt_length, True)


def test_a_row_of_15_megabytes_costs_little(tokenizer):
    """Ten times the row takes about ten times as long, and memory stays small."""

    def encode(size):
        long = "What do you think of people who lie to their friends? " * 14 * size
        chat, hidden = Chat((USER, {**REPLY, "content": long})), Chat(({**USER, "content": long}, REPLY), "x, line 1")
        turns = Chat((USER, REPLY) * size, "x, line 2")
        start = time.process_time()
        assert len(encode_chat(chat, tokenizer, max_length=512).input_ids) == 512
        for filled in (hidden, turns):
            with pytest.raises(InputError, match="no token of the response within max_length=512"):
                encode_chat(filled, tokenizer, max_length=512)
        return time.process_time() - start

    tracemalloc.start()
    encode(200)  # what is made once
    tenth, whole = encode(2_000), encode(20_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert whole < 25 * tenth
    assert peak < 200e6
