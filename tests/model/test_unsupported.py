"""Models that are no causal language models of decoder blocks are refused, by name, before anything long."""

import pytest
import torch
from builders import (
    LOUD,
    SHAPE,
    SHORT,
    SIZES,
    ForeignModule,
    LengthJudge,
    all_hooks,
    chat,
    fit,
    make_vector,
    slow_reference,
)
from peft import LoraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from persona_callbacks import (
    Ablation,
    DriftGuard,
    InputError,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    TraitEvaluation,
)
from persona_callbacks.model import LoadedModel, ModelSource, activations, dimensions, load_model

T5 = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
BART = BartConfig(vocab_size=400, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
                  decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
          "image_size": 8, "patch_size": 4}  # fmt: skip


def qwen2_vl():
    """The tower for images, ``model.visual.blocks``, is as deep as the language model, and comes first."""
    text = {**SIZES, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                                  "mrope_section": [1, 1, 2]}}  # fmt: skip
    images = {"depth": 4, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=images))


UNSUPPORTED = {
    "T5ForConditionalGeneration": (lambda: T5ForConditionalGeneration(T5Config(**T5)), "an encoder with a decoder"),
    "T5EncoderModel": (lambda: T5EncoderModel(T5Config(**T5)), "attention that sees later tokens"),
    "BartForConditionalGeneration": (lambda: BartForConditionalGeneration(BART), "an encoder with a decoder"),
    "BertLMHeadModel": (lambda: BertLMHeadModel(BertConfig(**SHAPE)), "attention that sees later tokens"),
    "BertModel": (lambda: BertModel(BertConfig(**SHAPE)), "attention that sees later tokens"),
    "CLIPVisionModel": (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), "reads pixel_values"),
}
CALLBACKS = {
    "PersonaMonitor": lambda: [PersonaMonitor([make_vector()])],
    "PreventativeSteering": lambda: [PreventativeSteering([make_vector()], 1.0)],
    "Ablation": lambda: [Ablation([make_vector()])],
    "ProjectionRegularisation": lambda: [ProjectionRegularisation([make_vector()])],
    "TraitEvaluation": lambda: [TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, sampling=SHORT)],
    "DriftGuard": lambda: [PersonaMonitor([make_vector()]), DriftGuard(shift=1.0)],
}


@pytest.mark.parametrize("adapted", [False, True], ids=["bare", "adapted"])
@pytest.mark.parametrize("kind", UNSUPPORTED)
@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_name_the_class_and_what_is_expected_before_the_first_step(name, kind, adapted, tokenizer, tmp_path):
    make, found = UNSUPPORTED[kind]
    lm = get_peft_model(make(), LoraConfig(r=2, target_modules="all-linear")) if adapted else make()
    module, stages = ForeignModule(lm, tokenizer), []
    module.during = stages.append
    with pytest.raises(InputError, match=f"^{kind}: expected a decoder-only causal language model, found .*{found}"):
        fit(module, CALLBACKS[name](), tmp_path, num_sanity_val_steps=0)
    assert not stages
    assert all_hooks(module) == 0


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_loading_names_the_class_and_what_is_expected(kind, tokenizer, tmp_path):
    UNSUPPORTED[kind][0]().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"expected a .*causal language model, found .*") as error:
        load_model(ModelSource("tiny", path=str(tmp_path)))
    assert kind in str(error.value)


def test_of_a_multimodal_model_the_tower_that_reads_text_is_found(tokenizer):
    model = qwen2_vl().eval()
    encoded = [chat("Why?", "People who lie to friends.", tokenizer)]
    read = activations(LoadedModel(model, tokenizer), encoded, (0, 2, 4), ("prompt_last",))
    for index, layer in enumerate((0, 2)):  # transformers' last entry is after the final norm
        assert torch.allclose(read[0, 0, index].double(), slow_reference(model, encoded[0], layer, "prompt_last"))
    assert not torch.equal(read[0, 0, 1], read[0, 0, 2])


def test_bert_as_a_decoder_is_a_causal_model():
    assert dimensions(BertLMHeadModel(BertConfig(**SHAPE, is_decoder=True))).num_layers == 4
