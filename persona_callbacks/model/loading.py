"""Loading a causal language model and its tokenizer from the hub, a folder or a GGUF file; adapters on it."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from persona_callbacks.chats import reasoning_of, with_template_arguments
from persona_callbacks.errors import InputError, check_whole
from persona_callbacks.files import cache_dir
from persona_callbacks.model.architecture import decoder_blocks, pretrained_model, refuse_several_streams
from persona_callbacks.model.gguf import converted_gguf, packaged_gguf
from persona_callbacks.model.quantization import quantization_config
from persona_callbacks.progress import open_console

_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SUMMED_TOGETHER = 1 << 16  # fits into a processor's cache


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: the ``model`` config group.

    A model is loaded from ``path`` or ``gguf`` if one of them is set, and otherwise from the Hugging Face hub.

    Attributes:
        id: the name of the model, which is recorded in persona vectors; on the hub, the name it is found by.
        path: a folder in transformers' format, or a GGUF file, which is converted once into the cache.
        gguf: a GGUF file inside an installed package, as ``package/file``; it is converted likewise.
        dtype: the type of the weights, a torch name such as ``float32`` or ``bfloat16``; of a quantized model, that of
            its activations.
        quantization: ``bitsandbytes-nf4``, ``bitsandbytes-int8`` or ``torchao-int8``: the weights are stored so when
            the model is loaded, on the device that the library chooses. A model that was saved quantized needs none.
        revision: a branch, tag or commit of the hub.
        device_map: where transformers puts the weights, such as ``auto`` or ``cuda:1``; they stay there.
        attn_implementation: transformers' name of the attention, such as ``eager``, ``sdpa`` or ``flash_attention_2``.
        template_arguments: what the chat template is always called with, such as ``{"enable_thinking": False}``.
        reasoning_tokens: as for :class:`LoadedModel`.

    Example:
        >>> ModelSource("Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16").path is None
        True
        >>> ModelSource("Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", quantization="bitsandbytes-nf4").revision
        >>> ModelSource("my-model", path="models/my-model-Q4_1.gguf").dtype
        'float32'
    """

    id: str
    path: str | None = None
    gguf: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    revision: str | None = None
    device_map: str | Mapping[str, int | str] | None = None
    attn_implementation: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    reasoning_tokens: int = 1024

    def __post_init__(self) -> None:
        """Check the number."""
        check_whole("model.reasoning_tokens", self.reasoning_tokens, 1)


@dataclass(frozen=True)
class LoadedModel:
    """A model together with its tokenizer.

    Attributes:
        model: a causal language model, bare or with PEFT adapters.
        tokenizer: the model's tokenizer, with a chat template.
        id: the name to record in what is made with the model.
        location: the folder or hub name that the model was loaded from.
        reasoning_tokens: the most tokens that the model may reason before it answers, beside those of the answer. Only
            models whose chat template has a form for reasoning do.
        template_arguments: what the tokenizer's chat template is always called with, beside the usual.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        >>> LoadedModel(model, tokenizer, id="tiny").id
        'tiny'
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    id: str = ""
    location: str = ""
    reasoning_tokens: int = 1024
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answering(self) -> list[Any]:
        """What the model's answers depend on beside its weights and the prompt, for caches: the template of a model
        that reasons, and how long it may; nothing for others.
        """
        if reasoning_of(self.tokenizer) is None and not self.template_arguments:
            return []
        return [self.tokenizer.get_chat_template(), self.reasoning_tokens]

    @property
    def is_converted(self) -> bool:
        """Whether the model was converted from a GGUF file, into a folder of the cache."""
        return Path(self.location).is_relative_to(cache_dir())


def load_model(source: ModelSource, console: Console | None = None) -> LoadedModel:
    """Load the model that ``source`` names, with its tokenizer. A multimodal model is loaded whole, and its language
    model is what is read, steered and trained.

    Args:
        source: where the model comes from.
        console: where the conversion of a GGUF file is announced; by default on stderr.

    Raises:
        InputError: a setting that is unknown or does not go with another one, a package that is not installed, a file,
            folder or package that does not exist, one that holds no causal language model, or a chat template that
            reads no such argument.
    """
    dtype = getattr(torch, source.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"model.dtype: unknown dtype {source.dtype!r}; expected float32, bfloat16 or float16")
    quantization = quantization_config(source.quantization, dtype)
    location = _location(source, console or open_console(stderr=True))
    wishes: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    try:
        config = AutoConfig.from_pretrained(location, **wishes)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{location}: not a model that transformers can load: {error}") from error
    auto = _auto_class(location, config)
    refuse_several_streams(str(location), config)
    options = {
        "quantization_config": quantization,
        "device_map": source.device_map if isinstance(source.device_map, str | None) else dict(source.device_map),
        "attn_implementation": source.attn_implementation,
    }
    given = {name: value for name, value in options.items() if value is not None}
    try:
        model = auto.from_pretrained(location, dtype=dtype, **wishes, **given)
        tokenizer = AutoTokenizer.from_pretrained(location, **wishes)
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"{location}: not a loadable causal language model: {error}") from error
    decoder_blocks(model)  # an encoder that was saved as a causal model is refused here
    if source.device_map is not None and getattr(model, "hf_device_map", None) is None:
        model.hf_device_map = {"": model.device}  # transformers notes no map of a single device
    bound = with_template_arguments(tokenizer, source.template_arguments)
    return LoadedModel(model, bound, source.id, str(location), source.reasoning_tokens, source.template_arguments)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, unless its weights stay where they were loaded to: quantized weights, and those that a
    ``device_map`` has placed.
    """
    base = pretrained_model(model)
    if getattr(base, "hf_quantizer", None) is None and getattr(base, "hf_device_map", None) is None:
        nn.Module.to(model, device)


def _auto_class(location: str | Path, config: PreTrainedConfig) -> Any:
    """Return the class of transformers that loads a model with its language-model head."""
    kinds = (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    )
    for auto, mapping in kinds:
        found = mapping.get(type(config), None)
        # transformers loads an encoder as a causal model if its family has one, with a random head; and it leaves the
        # tower for images out if the family has a class without it.
        if isinstance(found, type) and (not config.architectures or found.__name__ in config.architectures):
            return auto
    raise InputError(
        f"{location}: expected a causal language model, found model type {config.model_type!r}"
        f" ({', '.join(config.architectures or []) or 'no architecture named'})"
    )


def _location(source: ModelSource, console: Console) -> str | Path:
    """Return the folder in transformers' format, or the hub name, to load from."""
    if source.gguf and source.path:
        raise InputError(
            f"model: expected path or gguf, found both, path={source.path} and gguf={source.gguf}; set one to null"
        )
    if source.revision and (source.gguf or source.path):
        raise InputError(
            f"model.revision: expected a model of the hub, found {source.path or source.gguf}; a file or folder has no"
            f" revision {source.revision!r}; set it to null"
        )
    if source.gguf:
        return converted_gguf(packaged_gguf(source.gguf), source.id, source.gguf, console)
    if not source.path:
        return source.id
    path = Path(source.path).expanduser().absolute()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such GGUF file")
        return converted_gguf(path, source.id, str(path), console)
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no model folder; expected one with a config.json, or a *.gguf file")
    return path


def check_adapter(loaded: LoadedModel, folder: str | Path) -> Path:
    """Return the folder of a PEFT adapter after checking that its base model is this one, as far as the names tell.

    Raises:
        InputError: the folder holds no adapter, or the adapter of another base model.
    """
    folder = Path(folder).expanduser().absolute()
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter folder; expected one with an adapter_config.json")
    try:
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path or ""
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / 'adapter_config.json'}: not a PEFT adapter: {error}") from error
    names = [name.rstrip("/").rpartition("/")[2].casefold() for name in (base, loaded.id, loaded.location)]
    if names[0] and names[0] not in names[1:]:
        raise InputError(f"{folder}: the adapter is of the base model {base}, expected {loaded.id}")
    return folder


def with_adapter(loaded: LoadedModel, folder: str | Path) -> LoadedModel:
    """Return the model with a PEFT adapter on it, from the folder that :meth:`~peft.PeftModel.save_pretrained` wrote.

    Raises:
        InputError: as for :func:`check_adapter`, or the weights of the adapter do not fit the model.
    """
    folder = check_adapter(loaded, folder)
    try:
        model = PeftModel.from_pretrained(loaded.model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{folder}: the adapter does not fit {loaded.id}: {str(error).strip().splitlines()[-1].strip()}"
        ) from error
    return replace(loaded, model=model)


@contextmanager
def adapted(loaded: LoadedModel, folder: str | Path) -> Iterator[LoadedModel]:
    """The model with a PEFT adapter on it inside the block. Afterwards the model given is bare again, with the same
    weights, and the same of them require gradients.

    Raises:
        InputError: as for :func:`with_adapter`, or the model has an adapter already.
    """
    if isinstance(loaded.model, PeftModel) or getattr(loaded.model, "peft_config", None):
        raise InputError(f"{folder}: expected a bare model to put the adapter on, found one with an adapter")
    required = [(parameter, parameter.requires_grad) for parameter in loaded.model.parameters()]
    with_it = with_adapter(loaded, folder)
    try:
        yield with_it
    finally:
        assert isinstance(with_it.model, PeftModel)
        with_it.model.unload()
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)


def adapter_fingerprint(loaded: LoadedModel, folder: str | Path) -> str:
    """Return a SHA-256 of a bare model with an adapter on it, whatever the adapter's folder is called.

    Raises:
        InputError: as for :func:`adapted`.
    """
    with adapted(loaded, folder) as with_it:
        # The weights do not tell how they are scaled. Sets have another order in each process.
        settings = PeftConfig.from_pretrained(str(Path(folder).expanduser())).to_dict()
        told = {name: sorted(value) if isinstance(value, set) else repr(value) for name, value in settings.items()}
        return hashlib.sha256(f"{told}{weights_fingerprint(with_it.model)}".encode()).hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 that differs if the name, the shape or any value of any weight differs.

    The bits of all values are summed, each times a factor that follows from its place, in whole numbers: the result is
    the same on every device.
    """
    sha256 = hashlib.sha256()
    is_quantized = getattr(pretrained_model(model), "hf_quantizer", None) is not None
    # Of quantized weights, the scales are not among the parameters.
    weights = model.state_dict().items() if is_quantized else model.named_parameters()
    for name, weight in weights:
        for part in _plain_tensors(weight.detach()):
            sha256.update(f"{name}{tuple(part.shape)}{part.dtype}".encode())
            sha256.update(_bit_sum(part.flatten()).to_bytes(8, "little"))
    return sha256.hexdigest()


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a tensor of a quantization library consists of; a plain tensor is itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _bit_sum(values: Tensor) -> int:
    """Return the sum of all values' bits times odd factors that follow from their places, modulo 2^64."""
    bits = values.view(_SAME_WIDTH[values.element_size()])
    places = torch.arange(_SUMMED_TOGETHER, device=bits.device)
    # Mixed, so that equal steps of the place do not give equal steps of the factor.
    factors = (places * 6364136223846793005 + 1442695040888963407).bitwise_right_shift(7) * 2 + 1
    sums = [(part.long() * factors[: len(part)]).sum() for part in bits.split(_SUMMED_TOGETHER)]
    total = 0
    for block, part in enumerate(torch.stack(sums).tolist()):
        total += part * (2 * block + 1)
    return total % 2**64
