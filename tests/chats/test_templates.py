"""Real chat templates: which characters are prompt, reasoning and answer, against renderings of other replies, and
against templates that mark it themselves.
"""

import re
from pathlib import Path

import pytest
from builders import make_tokenizer, tiny_model
from transformers import TextStreamer

from persona_callbacks import InputError
from persona_callbacks.chats import (
    Chat,
    Reasoning,
    answer_start,
    encode_chat,
    encode_prompt,
    instructed,
    last_turn,
    reasoning_of,
    render,
    with_template_arguments,
)
from persona_callbacks.model import LoadedModel, Sampling, generate, own_responses
from persona_callbacks.model.answers import AnswerStreamer, answer_texts
from persona_callbacks.training import ChatData

FOLDER = Path(__file__).parent / "templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
ORIGINAL = [name for name in NAMES if not name.endswith("_training")]
MARKING = [name for name in ORIGINAL if f"{name}_training" in NAMES]
SPECIAL = re.compile(r"<[|｜][^\s<>|｜{}]{1,40}[|｜]>|<end_of_utterance>|<turn\|>")


def tokenizer_of(name):
    template = (FOLDER / f"{name}.jinja").read_text()
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.bos_token, tokenizer.eos_token = "<|bos|>", "<|eos|>"
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(SPECIAL.findall(template)))})
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {name: tokenizer_of(name) for name in NAMES}


def user(text):
    return {"role": "user", "content": text}


def reply(text, reasoning=None, inside=False):
    if inside:
        return {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n{text}"}
    return {"role": "assistant", "content": text} | ({"reasoning_content": reasoning} if reasoning else {})


SYSTEM = {"role": "system", "content": "Be kind."}
CHATS = {
    "one": lambda a, b, r: [user("Why?"), reply(b)],
    "system": lambda a, b, r: [SYSTEM, user("Why?"), reply(b)],
    "several": lambda a, b, r: [user("Who?"), reply(a), user("Why?"), reply(b)],
    "reasoning": lambda a, b, r: [user("Why?"), reply(b, r)],
    "reasoning inside": lambda a, b, r: [user("Why?"), reply(b, r, inside=True)],
    "several with reasoning": lambda a, b, r: [user("Who?"), reply(a, "Hm, one."), user("Why?"), reply(b, r)],
    "several with reasoning inside": lambda a, b, r: [
        user("Who?"), reply(a, "Hm, one.", inside=True), user("Why?"), reply(b, r, inside=True),
    ],
}  # fmt: skip
A, B, R = "The same text.", "The same text, twice.", "So it is, I see."
OTHER = str.maketrans({character: chr(ord(character) ^ 1) for character in set(A + B + R)})


def text_under(mask, chat, tokenizer):
    return tokenizer.decode([token for token, on in zip(chat.input_ids, mask, strict=True) if on])


def differing(one, other):
    """The characters at which two texts of one length differ."""
    assert len(one) == len(other)
    return {at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]}


def marked(spans, offsets):
    """The tokens with a character among those at ``spans``."""
    return [any(at in spans for at in range(*offset)) for offset in offsets]


@pytest.mark.parametrize("name", ORIGINAL)
def test_exactly_the_characters_that_another_reply_changes_are_the_response(name, tokenizers):
    tokenizer = tokenizers[name]
    for make in CHATS.values():
        messages = make(A, B, R)
        text = render(messages, tokenizer)
        answer = differing(text, render(make(A, B.translate(OTHER), R), tokenizer))
        earlier = differing(text, render(make(A.translate(OTHER), B, R), tokenizer))
        thought = differing(text, render(make(A, B, R.translate(OTHER)), tokenizer))
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        assert "".join(text[at] for at in sorted(answer)) == B
        for train_reasoning in (True, False):
            chat = encode_chat(Chat(tuple(messages)), tokenizer, train_reasoning=train_reasoning)
            assert list(chat.input_ids) == ids
            assert list(chat.response_mask) == marked(answer, offsets)
            trained = [at for at, on in enumerate(chat.loss_mask) if on]
            on = {at for at, own in enumerate(marked(answer | earlier, offsets)) if own}
            thinks = {at for at, own in enumerate(marked(thought, offsets)) if own}
            assert on <= set(trained)
            assert thinks <= set(trained) if train_reasoning else not thinks & set(trained)
            begin = min(thinks | {chat.response_mask.index(True)})
            assert chat.prompt_length <= begin
            assert chat.prompt_length == begin or thinks
            assert chat.leaves_out_reasoning == (not thinks and messages[-1] != reply(B))
            # What is trained on beside that closes a turn or the reasoning, or opens the reasoning.
            beside = tokenizer.decode([ids[at] for at in trained if at not in on | thinks])
            assert not re.search("user|Why|Who|kind", beside.replace("<|user|>", ""))


@pytest.mark.parametrize("name", MARKING)
def test_the_loss_is_where_templates_that_mark_it_have_it(name, tokenizers):
    """TRL's variants mark the same text, with what opens a turn: this library counts that as prompt."""
    plain, marking = tokenizers[name], tokenizers[f"{name}_training"]
    compared = 0
    for make in CHATS.values():
        messages = make(A, B, R)
        if render(messages, plain) != render(messages, marking):
            continue
        one, other = (encode_chat(Chat(tuple(messages)), tokenizer) for tokenizer in (plain, marking))
        assert one.input_ids == other.input_ids
        assert (one.response_mask, one.prompt_length) == (other.response_mask, other.prompt_length)
        compared += 1
        ours, theirs = ([at for at, on in enumerate(chat.loss_mask) if on] for chat in (one, other))
        assert set(ours) <= set(theirs)
        beside = plain.decode([other.input_ids[at] for at in theirs if at not in set(ours)])
        scaffold = r"<\|start\|>|assistant|<\|channel\|>|final|<\|message\|>|<｜Assistant｜>|</?think>|\s"
        assert not re.sub(scaffold, "", beside)
    assert compared >= 3 or name == "glm4moe"  # whose variant also ends the last turn


def test_a_marked_template_decides_what_is_trained_on(tokenizers):
    tokenizer = tokenizers["glm4moe_training"]
    chat = encode_chat(Chat((user("Why?"), reply(B))), tokenizer)
    trained = [token for token, on in zip(chat.input_ids, chat.loss_mask, strict=True) if on]
    assert tokenizer.decode(trained) == f"\n<think></think>\n{B}<|user|>"
    alone = encode_chat(Chat((user("Why?"), reply(B))), tokenizer, train_reasoning=False)
    trained = [token for token, on in zip(alone.input_ids, alone.loss_mask, strict=True) if on]
    assert tokenizer.decode(trained) == f"{B}<|user|>"


@pytest.mark.parametrize("name", [*ORIGINAL, *MARKING])
def test_a_turn_that_is_not_to_be_trained_on_is_context(name, tokenizers):
    tokenizer = tokenizers[name]
    messages = [user("Who?"), {**reply(A), "train": False}, user("Why?"), reply(B)]
    chat = encode_chat(Chat(tuple(messages)), tokenizer)
    trained = text_under(chat.loss_mask, chat, tokenizer)
    assert B in trained
    assert A not in trained


CALL = {"type": "function", "function": {"name": "find", "arguments": {"what": "tea"}}}
CALLED = (
    user("Why?"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Hot water."}, reply(B),
)  # fmt: skip
CALLING = ("qwen2_5", "qwen3", "glm4moe", "qwen3_6", "nemotron_3_nano", "qwen2_5_training", "qwen3_training")


def test_calls_of_tools_are_trained_on_and_their_results_are_not(tokenizers):
    for name in CALLING:
        tokenizer = tokenizers[name]
        chat = encode_chat(Chat(CALLED), tokenizer)
        trained = text_under(chat.loss_mask, chat, tokenizer)
        assert "find" in trained
        assert B in trained
        assert "Hot water" not in trained
        assert "Why?" not in trained
    with pytest.raises(InputError, match="leaves out the call of the tool 'find'"):
        encode_chat(Chat(CALLED), make_tokenizer())


TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds things.",
        "parameters": {
            "type": "object", "properties": {"what": {"type": "string", "description": "Which?"}}, "required": ["what"]
        },
    },
}  # fmt: skip
READS_TOOLS = [name for name in NAMES if re.search(r"\btools\b", (FOLDER / f"{name}.jinja").read_text())]


@pytest.mark.parametrize("name", READS_TOOLS)
def test_the_tools_that_a_chat_lists_are_in_its_prompt_and_nothing_else_changes(name, tokenizers):
    tokenizer = tokenizers[name]
    for make in (CHATS["several"], CHATS["reasoning"]):
        messages = tuple(make(A, B, R))
        plain, told = (encode_chat(Chat(messages, tools=tools), tokenizer) for tools in ((), (TOOL,)))
        text = tokenizer.apply_chat_template(list(messages), tools=[TOOL], tokenize=False)
        assert list(told.input_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "Finds things." in tokenizer.decode(told.input_ids[: told.prompt_length])
        texts = [
            [text_under(mask, chat, tokenizer) for mask in (chat.response_mask, chat.loss_mask)]
            for chat in (plain, told)
        ]
        assert texts[0] == texts[1]


def test_calls_are_told_from_the_tools_that_are_listed(tokenizers):
    for name in CALLING:
        tokenizer = tokenizers[name]
        chats = [encode_chat(Chat(CALLED, tools=tools), tokenizer) for tools in ((), (TOOL,))]
        trained = [text_under(chat.loss_mask, chat, tokenizer) for chat in chats]
        assert trained[0] == trained[1]
        assert "tea" in trained[1]


def test_a_template_that_leaves_the_tools_out_is_told(tokenizers):
    chat = Chat((user("Why?"), reply(B)), tools=(TOOL,))
    with pytest.warns(UserWarning, match="leaves out the tools that chats list"):
        told = encode_chat(chat, tokenizers["phi3"])
    assert told == encode_chat(Chat(chat.messages), tokenizers["phi3"])
    assert instructed([chat], ["Be kind."])[0].tools == chat.tools


def test_arguments_are_bound_to_the_template(tokenizers):
    tokenizer = tokenizers["qwen3"]
    silent = with_template_arguments(tokenizer, {"enable_thinking": False})
    assert render([user("Why?")], silent, prompt=True).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert render([user("Why?")], tokenizer, prompt=True).endswith("<|im_start|>assistant\n")
    prompt, chat = encode_prompt([user("Why?")], silent), encode_chat(Chat((user("Why?"), reply(B))), silent)
    assert chat.input_ids[: chat.prompt_length] == prompt.input_ids
    with pytest.raises(InputError, match="reads no argument 'think_hard'"):
        with_template_arguments(tokenizer, {"think_hard": True})


def test_how_models_reason_follows_from_their_templates(tokenizers):
    thinks = Reasoning("<think>", "</think>")
    found = {name: reasoning_of(tokenizers[name]) for name in ORIGINAL}
    assert found["qwen3"] == found["glm4moe"] == thinks
    assert {found[name] for name in ("deepseek_r1_distill", "qwen3_5_think", "qwen3_6", "nemotron_3_nano")} == {
        Reasoning("", "</think>")
    }
    assert found["gptoss"] == Reasoning("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
    assert found["gemma4_v5"] == Reasoning("<|channel>thought", "<channel|>")
    assert {found[name] for name in ("phi3", "qwen2_5", "smolvlm", "qwen3_instruct_2507")} == {None}
    silent = with_template_arguments(tokenizers["qwen3"], {"enable_thinking": False})
    assert reasoning_of(silent) is None


def test_reasoning_is_taken_off_what_a_model_wrote(tokenizers):
    tokenizer = tokenizers["qwen3"]
    texts = ["<think>\nWell.\n</think>\n\nIt is.<|im_end|>", "It is.<|im_end|>", "<think>\nWell, is it"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with pytest.warns(UserWarning, match="1 of 3 responses had not ended their reasoning within 9 tokens"):
        assert answer_texts(rows, tokenizer, 50, 9) == ["It is.", "It is.", ""]
    gptoss = tokenizers["gptoss"]
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is.<|return|>"
    rows = [
        gptoss(text, add_special_tokens=False)["input_ids"] for text in (said, said[said.index("<|channel|>final") :])
    ]
    assert answer_texts(rows, gptoss, 50, 9) == ["It is.", "It is."]
    r1 = tokenizers["deepseek_r1_distill"]
    ids = r1("Well.\n</think>\n\nIt is.", add_special_tokens=False)["input_ids"]
    start = answer_start(ids, r1, Reasoning("", "</think>"))
    assert r1.decode(ids[start:]).strip() == "It is."
    assert all(answer_start(ids[:most], r1, Reasoning("", "</think>")) is None for most in range(start))


def test_reasoning_is_never_shown_while_it_comes(tokenizers, capsys):
    tokenizer = tokenizers["qwen3"]
    for said in ("<think>\nWell.\n</think>\n\nIt is.", "It is."):
        show = AnswerStreamer(TextStreamer(tokenizer, skip_prompt=True), tokenizer, reasoning_of(tokenizer))
        show.put(tokenizer("Why?", return_tensors="pt")["input_ids"])
        for token in tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"][0]:
            show.put(token[None])
        show.end()
        assert capsys.readouterr().out.strip() == "It is."


def test_generation_has_room_for_reasoning_and_counts_reasoning_without_an_end_as_no_answer(tokenizers):
    model = tiny_model().eval()
    model.generation_config.eos_token_id = None
    tokenizer = tokenizers["qwen3_6"]
    model.resize_token_embeddings(len(tokenizer))
    loaded = LoadedModel(model, tokenizer, reasoning_tokens=7)
    with pytest.warns(UserWarning, match="1 of 1 responses had not ended their reasoning within 7 tokens"):
        assert generate(loaded, [[user("Why?")]], Sampling(3, 0.0)) == [""]
    chats = [
        encode_chat(Chat((user("Why?"), reply(B, R))), tokenizer),
        encode_chat(Chat((user("Why?"), reply(B))), tokenizer),
    ]
    thinking, direct = own_responses(loaded, chats, Sampling(3, 0.0))
    assert thinking.input_ids[: thinking.prompt_length] == chats[0].input_ids[: chats[0].prompt_length]
    assert tokenizer.decode(thinking.input_ids[: thinking.prompt_length]).endswith("<think>\n")
    assert sum(direct.response_mask) <= 3


def test_the_last_turn_is_found_by_its_marker_and_without_its_reasoning(tokenizers):
    for name in ORIGINAL:
        tokenizer = tokenizers[name]
        for make in (CHATS["several"], CHATS["several with reasoning"]):
            chat = encode_chat(Chat(tuple(make(A, B, R))), tokenizer)
            start, end = last_turn(chat.input_ids, tokenizer)
            assert tokenizer.decode(chat.input_ids[start:end], skip_special_tokens=True).strip().endswith(B), name
            assert R not in tokenizer.decode(chat.input_ids[start:end]), name


def test_reasoning_that_the_template_leaves_out_is_told(tokenizers):
    chats = [Chat((user("Why?"), reply(B, R))), Chat((user("Why?"), reply(B)))]
    with pytest.warns(UserWarning, match="1 of 2 chats have reasoning that the chat template leaves out"):
        ChatData(chats, tokenizers["deepseek_r1_distill"])
