"""Which forward passes of a training step are steered, ablated and read: those that a loss can be taken on."""

import pytest
import torch
from builders import ForeignModule, all_hooks, fit, make_vector, tiny_model
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from persona_callbacks import Ablation, InputError, PersonaMonitor, PreventativeSteering, unsteered
from persona_callbacks.model import base_model


class Several(ForeignModule):
    """A training step that runs the model in several ways on its first batch, and keeps the logits of each."""

    def __init__(self, lm, tokenizer):
        super().__init__(lm, tokenizer)
        self.seen = {}

    def training_step(self, batch, batch_idx):
        def logits():
            return self.lm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()

        self.seen["loss"] = logits()
        with torch.no_grad():
            self.seen["no gradients"] = logits()
            prompt = {name: batch[name][:1, :5] for name in ("input_ids", "attention_mask")}
            torch.manual_seed(0)
        generated = self.lm.generate(**prompt, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        self.seen["generate"] = generated.logits[0]
        with unsteered():
            self.seen["unsteered"] = logits()
        with base_model(self.lm):
            self.seen["adapter off"] = logits()
        with torch.no_grad(), base_model(self.lm):
            self.seen["reference"] = logits()
        return super().training_step(batch, batch_idx)


def passes(callbacks, tokenizer, folder):
    module = Several(tiny_model(peft=True), tokenizer)
    hooks = all_hooks(module)
    fit(module, callbacks, folder, max_steps=1, limit_val_batches=0)
    assert all_hooks(module) == hooks
    return module.seen


WRITERS = {
    "steering": lambda **when: PreventativeSteering([make_vector()], 1.0, **when),
    "ablation": lambda **when: Ablation([make_vector()], **when),
}


@pytest.mark.parametrize("writes", WRITERS.values(), ids=WRITERS)
def test_by_default_only_the_pass_that_the_loss_is_taken_on_is_written_to(writes, tokenizer, tmp_path):
    plain = passes([], tokenizer, tmp_path)
    by_default = passes([writes()], tokenizer, tmp_path)
    everywhere = passes([writes(when="all")], tokenizer, tmp_path)
    changed = {name for name in plain if not torch.equal(plain[name], by_default[name])}
    assert changed == {"loss"}
    assert {name for name in plain if not torch.equal(plain[name], everywhere[name])} == set(plain) - {"unsteered"}


class ReferenceLast(ForeignModule):
    """Runs the base model as a reference after the pass that the loss is taken on."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        with torch.no_grad(), base_model(self.lm):
            self.lm(**batch)
        return loss


def test_the_reading_of_the_batch_is_of_the_pass_that_the_loss_is_taken_on(tokenizer, tmp_path):
    def projection(module):
        trainer = fit(module, [PersonaMonitor([make_vector()], pairs=0)], tmp_path, max_steps=1, log_every_n_steps=1,
                      limit_val_batches=0)  # fmt: skip
        return trainer.callback_metrics["persona/evil/batch_projection"].item()

    plain = projection(ForeignModule(tiny_model(peft=True), tokenizer))
    assert projection(ReferenceLast(tiny_model(peft=True), tokenizer)) == plain


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pass_is_computed_again_as_it_was_when_others_follow_it(reentrant, tokenizer, tmp_path):
    """Checkpointing around the whole blocks, hooks included, as transformers did before 5.20."""

    def gradients(checkpointing, callbacks):
        model = tiny_model(peft=True)
        blocks = model.base_model.model.model.layers

        class Again(type(blocks[0])):
            def __call__(self, hidden, **kwargs):
                def run(stream):
                    return super(Again, self).__call__(stream, **kwargs)

                return torch.utils.checkpoint.checkpoint(run, hidden, use_reentrant=reentrant)

        if checkpointing:
            model.enable_input_require_grads()
            model.config.use_cache = False
            for block in blocks:
                block.__class__ = Again

        class Watched(ReferenceLast):
            def on_before_optimizer_step(self, optimizer):
                self.found = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}

        module = Watched(model, tokenizer)
        fit(module, callbacks(), tmp_path, max_steps=1, limit_val_batches=0)
        return module.found

    steering = lambda: [PreventativeSteering([make_vector()], 0.3)]  # noqa: E731
    expected, found = gradients(False, steering), gradients(True, steering)
    assert any(not torch.allclose(expected[name], other) for name, other in gradients(False, list).items())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_training_without_gradients_is_an_error_that_names_the_way_out(tokenizer, tmp_path):
    class WithoutGradients(ForeignModule):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.lm(**batch)

    with pytest.raises(MisconfigurationException, match="takes no gradients, choose when='all'"):
        fit(WithoutGradients(tiny_model(), tokenizer), [PreventativeSteering([make_vector()], 1.0)], tmp_path)
    everywhere = PreventativeSteering([make_vector()], 1.0, when="all")
    fit(WithoutGradients(tiny_model(), tokenizer), [everywhere], tmp_path, max_steps=1)


def test_unknown_passes_are_refused_by_name():
    for kind in (PreventativeSteering, Ablation):
        with pytest.raises(InputError, match=f"{kind.__name__}: when must be 'loss' or 'all', found 'never'"):
            kind([make_vector()], when="never")
