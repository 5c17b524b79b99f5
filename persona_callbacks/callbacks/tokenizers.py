"""Finding the tokenizer of the model that is trained."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase


def find_tokenizer(
    callback: str, trainer: Trainer, pl_module: LightningModule, model_id: str
) -> PreTrainedTokenizerBase:
    """The ``tokenizer`` of the module or data module, else the one that ``model_id`` names.

    Raises:
        MisconfigurationException: there is none; ``callback`` is named as the one that needs it.
    """
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        found = getattr(owner, "tokenizer", None)
        if isinstance(found, PreTrainedTokenizerBase):
            return found
    try:
        return AutoTokenizer.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise MisconfigurationException(
            f"{callback} needs the model's tokenizer: pass tokenizer=..., or set it as `tokenizer` on the module or"
            f" data module (loading it as {model_id!r} failed: {error})"
        ) from error
