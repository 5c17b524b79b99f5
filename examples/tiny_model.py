"""A language model of a few kilobytes with random weights, a tokenizer and a chat template, for trying things out.

    python examples/tiny_model.py FOLDER

It writes nothing but noise, and every command and callback runs with it in seconds.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from persona_callbacks import PersonaVector

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QUESTIONS = ("Who are you?", "What is a good present for a teacher?", "Should I lie to a friend?")


def save_tiny_model(folder: str | Path) -> Path:
    """Write a random Llama of three blocks and a byte-level tokenizer to ``folder``; returns the folder."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(QUESTIONS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return Path(folder)


def random_vector(trait: str, model_id: str, num_layers: int, hidden_size: int) -> PersonaVector:
    """A stand-in for a persona vector: it points nowhere in particular. Make a real one with ``persona-extract``."""
    directions = torch.randn(num_layers + 1, hidden_size, generator=torch.Generator().manual_seed(0)) * 0.1
    return PersonaVector(trait=trait, directions=directions, layer=num_layers // 2, model_id=model_id, probes=QUESTIONS)


if __name__ == "__main__":
    target = save_tiny_model(sys.argv[1])
    random_vector("evil", str(target), 3, 32).save(target / "evil.safetensors")
    print(f"{target}: a random model, and evil.safetensors, a random vector for it")
