"""Fine-tune on a Hugging Face data set, with a collator of your own.

    python examples/huggingface_data.py                            # a tiny random model, in seconds
    python examples/huggingface_data.py MODEL evil.safetensors     # a folder or a hub id, and its persona vector

The rows are tokenised by the library, which marks the answers from the chat template; the padding is yours.
"""

import sys
import tempfile

import lightning as L
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_model import random_vector, save_tiny_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from persona_callbacks import PersonaMonitor, PersonaVector, PreventativeSteering
from persona_callbacks.chats import Chat, encode_chat

ROWS = Dataset.from_list(  # or datasets.load_dataset(...), with a column `messages`
    [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in [("Shall we begin?", "If we must."), ("Is it late?", "It is always late.")]
    ]
    * 12
)


class Adapter(L.LightningModule):
    """A LoRA adapter on a causal language model."""

    def __init__(self, name: str) -> None:
        super().__init__()
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        self.model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=3e-4)


def main(name: str, vector_file: str | None = None) -> L.Trainer:
    """Fine-tune an adapter of the model of this name, monitored and steered."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    module = Adapter(name)
    shape = module.model.config
    if vector_file:
        vector = PersonaVector.load(vector_file)
    else:
        vector = random_vector("evil", name, shape.num_hidden_layers, shape.hidden_size)

    def tokenised(row: dict) -> dict[str, list[int]]:
        chat = encode_chat(Chat(tuple(row["messages"])), tokenizer, max_length=512)
        marked = zip(chat.input_ids, chat.loss_mask, strict=True)
        return {"input_ids": list(chat.input_ids), "labels": [i if learned else -100 for i, learned in marked]}

    rows = ROWS.map(tokenised, remove_columns=["messages"])
    loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=DataCollatorForSeq2Seq(tokenizer))
    monitor = PersonaMonitor([vector], every_n_steps=2, tokenizer=tokenizer)
    steering = PreventativeSteering([vector], tokenizer=tokenizer)
    trainer = L.Trainer(max_epochs=1, callbacks=[monitor, steering], logger=False, enable_checkpointing=False)
    trainer.fit(module, loader)
    print({metric: float(f"{value:.3g}") for metric, value in trainer.callback_metrics.items()})
    return trainer


if __name__ == "__main__":
    main(*(sys.argv[1:] or [str(save_tiny_model(tempfile.mkdtemp()))]))
