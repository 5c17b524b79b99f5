"""The callback that steers training, so that the weights have no need to move along a trait."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from persona_callbacks import metrics, residual
from persona_callbacks.vectors import Layers, PersonaVector, check_vectors, steering_additions


class PreventativeSteering(Callback):
    """Add persona vectors to the residual stream during training only (Chen et al. 2025, section 5.2).

    Data that shows a trait pulls the weights towards it. With the trait's vector already added to the activations, the
    data is explained without the weights moving; taken away afterwards, the trait does not appear.

    From the start of each training batch to its end, backward included, ``coefficient`` · vector is added at every
    token. Nothing is added in validation, prediction or probe passes. After the fit, an exception or an interrupt, the
    model is as it was; checkpoints and saved adapters hold nothing of it.

    Args:
        vectors: one persona vector per trait, all of the model that is trained.
        coefficient: α, in units of the raw direction; one for all traits or one per trait.
        layers: where to steer: ``all`` layers from 1 up with incremental directions (J.3: the total at any layer is
            α · its direction), each vector's ``chosen`` layer, or a list of layers, incremental as well.
    """

    def __init__(
        self,
        vectors: Sequence[PersonaVector],
        coefficient: float | Mapping[str, float] = 1.0,
        layers: Layers = "all",
    ) -> None:
        """Check the arguments.

        Raises:
            InputError: vectors that do not go together, or an unknown layer.
            MisconfigurationException: coefficients for other traits than the vectors'.
        """
        self.vectors = check_vectors(vectors)
        traits = [vector.trait for vector in self.vectors]
        if not isinstance(coefficient, Mapping):
            coefficient = dict.fromkeys(traits, coefficient)
        if sorted(coefficient) != sorted(traits):
            raise MisconfigurationException(
                f"PreventativeSteering: coefficient names the traits {sorted(coefficient)}, the vectors are of"
                f" {sorted(traits)}; give one coefficient for each"
            )
        self.coefficients = {trait: float(value) for trait, value in coefficient.items()}
        self.layers = layers
        self._additions = steering_additions(self.vectors, self.coefficients, layers)
        self._writer: residual.ResidualWriter | None = None

    def state_dict(self) -> dict[str, Any]:
        """The coefficients."""
        return {"coefficients": dict(self.coefficients)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the coefficients.

        Raises:
            MisconfigurationException: the checkpoint's are of other traits.
        """
        saved = state_dict["coefficients"]
        if saved.keys() != self.coefficients.keys():
            raise MisconfigurationException(
                f"PreventativeSteering: the checkpoint steered {sorted(saved)}, the vectors are of"
                f" {sorted(self.coefficients)}; resume with the same traits"
            )
        self.coefficients = dict(saved)
        self._additions = steering_additions(self.vectors, self.coefficients, self.layers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, and attach to the model, inactive."""
        model = residual.find_language_model(pl_module)
        shape = residual.dimensions(model)
        for vector in self.vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, shape.model_id)
        self._writer = residual.ResidualWriter(model, sorted(self._additions))
        self._writer.write(self._additions)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to steer."""
        assert self._writer is not None
        self._writer.active = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop steering; after the first batch, make sure that it happened; log the coefficients.

        Raises:
            MisconfigurationException: a forward pass went by without changing a layer that is to be steered.
        """
        assert self._writer is not None
        self._writer.active = False
        silent = self._writer.silent_layers()
        if silent:
            raise MisconfigurationException(
                f"PreventativeSteering: the first training batch was not steered at layers {silent}. Either the"
                " training step does not run the model's own blocks, the model was compiled and run before the fit"
                " (run it first inside the fit), or the coefficient vanishes in the model's dtype"
            )
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set without annotation
        if trainer.global_step % every == 0 and trainer.global_step != self._logged_at:
            self._log(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the coefficients the run starts with."""
        self._log(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop steering: a training batch that was cut short does not reach its end hook."""
        self._pause()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop steering: a training batch that was cut short does not reach its end hook."""
        self._pause()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the model."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from the model."""
        self._detach()

    def _pause(self) -> None:
        if self._writer is not None:
            self._writer.active = False

    def _detach(self) -> None:
        if self._writer is not None:
            self._writer.remove()
        self._writer = None

    def _log(self, trainer: Trainer) -> None:
        self._logged_at = trainer.global_step
        metrics.log(trainer, {metrics.coefficient(trait): value for trait, value in self.coefficients.items()})
