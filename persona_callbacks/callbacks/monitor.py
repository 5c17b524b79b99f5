"""The callback that measures where training moves the model along persona vectors."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from persona_callbacks.callbacks._batches import BatchProjections
from persona_callbacks.callbacks._pairs import PairReader, Pairs, check_pairs, chosen_pairs
from persona_callbacks.callbacks._probes import ProbeReader, layers_read
from persona_callbacks.callbacks._readings import Measured, log_course, log_reading, readings_without, without
from persona_callbacks.callbacks._refusing import RefusingCallback
from persona_callbacks.callbacks._resuming import MADE_WITH, OnePerTraits, warn_of_older_version
from persona_callbacks.callbacks._seams import (
    BatchAdapter,
    averages_weights,
    back_on_device,
    check_at_least_one,
    find_tokenizer,
    is_logging_step,
)
from persona_callbacks.callbacks._training import TrainingValues
from persona_callbacks.errors import InputError
from persona_callbacks.files import settings_fingerprint
from persona_callbacks.model import base_model, is_sharded, is_untrained, removable_adapters
from persona_callbacks.steering import Reading, Sensor
from persona_callbacks.vectors import PersonaVector, Position, check_vectors, warn_if_weak


class PersonaMonitor(OnePerTraits, RefusingCallback):
    """Measure the shift and the preference of every trait throughout training. It changes nothing in the run.

    Before step 1, every ``every_n_steps`` optimizer steps and at the end, each trait's probes are run once, unsteered
    and without dropout, and ``persona/{trait}/projection`` and ``persona/{trait}/shift`` are logged. Before step 1,
    every ``pairs_every_n_steps`` and at the end, so are the trait's minimal pairs, whose two responses differ in the
    trait alone: ``persona/{trait}/preference`` is how much likelier the trait's response has become, and
    ``persona/{trait}/preference_share`` how often it is the likelier one. The baseline is the base model at the start
    of the fit: adapters disabled where there are some, else the weights as they are then. With several processes, each
    runs its share, in equally many passes.

    The training batches' own response tokens (``labels`` other than -100) are read in the forward pass that happens
    anyway, as the model sees them, steering included: ``persona/{trait}/batch_projection``, averaged over each
    ``trainer.log_every_n_steps``. At those steps and at each reading, ``train/loss``, ``train/learning_rate`` and
    ``train/gradient_norm`` (before clipping) are logged beside, unless the module logs them itself by these names.

    Other callbacks may :meth:`request` readings between these, which are of the chosen layers alone, with pairs or
    without; adaptive steering does. Of an adapter that changes nothing yet, the baseline is the first reading. With
    Lightning's weight averaging (EMA, SWA), the last reading is of the averaged weights, which the fit ends with.

    Baseline and readings are kept in checkpoints, so that a resumed run keeps its baseline. A trait whose vector,
    probes, pairs or position differ from the checkpoint's is measured anew, with a warning: its earlier readings are
    dropped, its baseline is measured again, and a reading is taken before the run goes on.

    Args:
        vectors: one persona vector per trait, or the path of its file, all of the model that is trained.
        every_n_steps: optimizer steps between readings.
        position: where probes are read; a probe is a prompt, so ``prompt_last`` (Chen et al. 2025, section 4.2: the
            finetuning shift) or ``prompt_mean``.
        probes: questions to use instead of those stored in each vector.
        tokenizer: found on the module or data module (``tokenizer``) or loaded by the vectors' model id if not given.
        batch_size: probes, or responses of pairs, per forward pass.
        every_layer: read the probes at every layer, not only the chosen ones, for ``shift_by_layer`` of the readings,
            and a table and a picture of it in loggers that have some, such as W&B's.
        pairs: how many of each vector's minimal pairs are read; 0 for none. Or the pairs themselves: a list if there is
            one vector, else by trait. Reading 16 of a trait costs more than half a training step on 8 chats.
        batch_adapter: gives ``input_ids`` and ``labels`` of training batches that are no mapping with these.
        pairs_every_n_steps: optimizer steps between readings of the pairs, which come with the next reading of the
            probes; with each of those where adaptive steering or a guard answers to the preference.

    Attributes:
        readings: all readings so far, oldest first.

    Raises:
        InputError: vectors that do not go together, a trait without probes, or a number of steps or a position that
            cannot be.

    Example:
        >>> import torch
        >>> from persona_callbacks import PersonaMonitor, PersonaVector
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="", probes=("Who are you?",))
        >>> callbacks = [PersonaMonitor([evil], every_n_steps=5)]
    """

    def __init__(
        self,
        vectors: Sequence[PersonaVector | str | Path],
        every_n_steps: int = 10,
        position: Position = "prompt_last",
        probes: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        every_layer: bool = False,
        pairs: Pairs = 16,
        batch_adapter: BatchAdapter | None = None,
        pairs_every_n_steps: int = 25,
    ) -> None:
        self.vectors = check_vectors(vectors)
        self.check(
            [vector.trait for vector in self.vectors], self.vectors[0].num_layers, every_n_steps, position, probes,
            tokenizer, batch_size, every_layer, pairs, batch_adapter, pairs_every_n_steps,
        )  # fmt: skip
        warn_if_weak(self.vectors)
        for vector in self.vectors:
            vector.unit_direction()
            if not (vector.probes if probes is None else probes):
                raise InputError(f"persona vector {vector.trait!r}: it holds no probes; pass probes=[...] questions")
        self.every_n_steps = every_n_steps
        self.position = position
        self.probes = None if probes is None else tuple(probes)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.every_layer = every_layer
        self.pairs = chosen_pairs(self.vectors, pairs)
        self.pairs_every_n_steps = pairs_every_n_steps
        self.batch_adapter = batch_adapter
        self.readings: list[Reading] = []
        self._baseline: dict[str, Sequence[float]] = {}
        self._preference_baseline: dict[str, float] = {}
        self._resumed = False
        self._requests: dict[object, tuple[int, Sensor]] = {}
        self._needed: set[Sensor] = set()
        self._batches: BatchProjections | None = None
        self._training = TrainingValues()

    @classmethod
    def check(
        cls,
        traits: Sequence[str],
        num_layers: int,
        every_n_steps: int = 10,
        position: Position = "prompt_last",
        probes: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        every_layer: bool = False,
        pairs: Pairs = 16,
        batch_adapter: BatchAdapter | None = None,
        pairs_every_n_steps: int = 25,
    ) -> None:
        """Check the callback's settings before there are vectors.

        Args:
            traits: those that are to be watched.
            num_layers: blocks of the model.
            every_n_steps: as for the callback.
            position: see there.
            probes: see there.
            tokenizer: see there.
            batch_size: see there.
            every_layer: see there.
            pairs: see there.
            batch_adapter: see there.
            pairs_every_n_steps: see there.

        Raises:
            InputError: settings that cannot be.
        """
        del num_layers, tokenizer, every_layer, batch_adapter  # any will do
        check_pairs(cls.__name__, traits, pairs)
        check_at_least_one(
            cls.__name__, every_n_steps=every_n_steps, batch_size=batch_size, pairs_every_n_steps=pairs_every_n_steps
        )
        if position not in ("prompt_last", "prompt_mean"):
            expected = "expected 'prompt_last' or 'prompt_mean', since a probe is a prompt and has no response to read"
            raise InputError(f"{cls.__name__}: position: {expected}; found {position!r}")
        if probes is not None and not probes:
            raise InputError(f"{cls.__name__}: probes is empty; expected at least one question")

    def request(self, requester: object, step: int | None, sensor: Sensor = "preference") -> None:
        """Ask for a reading of a sensor after ``step`` optimizer steps, beside those that are taken anyway.

        It is of the chosen layers alone, and one of the ``shift`` is without pairs, which cost several times as much as
        probes. Every requester has a request of its own, which replaces its earlier one; ``None`` takes it back.
        Requests end with the fit.
        """
        if step is None:
            self._requests.pop(requester, None)
        else:
            self._requests[requester] = (step, sensor)

    def need(self, sensor: Sensor) -> None:
        """Have a sensor in all readings of the monitor's own in this fit, as what answers to the sensor needs them."""
        self._needed.add(sensor)

    @override
    def facts(self) -> dict[str, Any]:
        """What loggers record of the monitor."""
        names = ("every_n_steps", "position", "every_layer", "pairs_every_n_steps")
        settings = {name: getattr(self, name) for name in names}
        probes = {vector.trait: len(self._probes_of(vector)) for vector in self.vectors}
        return {**settings, "probes": probes, "pairs": {trait: len(pairs) for trait, pairs in self.pairs.items()}}

    def traits_of(self, sensor: Sensor) -> tuple[str, ...]:
        """The traits that a sensor reads: all, or, for the preference, those that have minimal pairs."""
        return tuple(self.pairs) if sensor == "preference" else tuple(vector.trait for vector in self.vectors)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Baseline and readings, and what they were measured with."""
        return {
            "baseline": dict(self._baseline),
            "preference_baseline": dict(self._preference_baseline),
            "readings": [asdict(reading) for reading in self.readings],
            MADE_WITH: self._measured_with(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore baseline and readings, without those measured with another vector, probes, pairs or position."""
        self._baseline = dict(state_dict["baseline"])
        self._preference_baseline = dict(state_dict.get("preference_baseline", {}))  # older checkpoints have none
        self.readings = [Reading(**reading) for reading in state_dict["readings"]]
        self._resumed = bool(self.readings)  # else the checkpoint is of before the fit, such as Lightning's tuner makes
        if MADE_WITH not in state_dict:
            warn_of_older_version("PersonaMonitor")
            return
        before, now = state_dict[MADE_WITH], self._measured_with()
        what = {
            f"{key} of {trait}": trait
            for trait in now
            for key, value in before.get(trait, {}).items()
            if value != now[trait][key]
        }
        changed = list(dict.fromkeys(what.values()))
        if changed:
            rank_zero_warn(
                f"PersonaMonitor: {', '.join(what)}: not as in the checkpoint. The earlier readings of"
                f" {', '.join(changed)} are dropped, and the baseline is measured again"
            )
            self._forget(changed)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, find the tokenizer, encode probes and pairs, attach the batch reader."""
        self._model = self.find_model(trainer, pl_module, self.vectors)
        self._requests, self._needed = {}, set()
        self._training.forget()
        self._tokenizer = self.tokenizer or find_tokenizer(
            "PersonaMonitor", trainer, pl_module, self.vectors[0].model_id
        )
        self._probe_reader = ProbeReader(
            self.vectors, [self._probes_of(vector) for vector in self.vectors], self.position, self._tokenizer
        )  # fmt: skip
        self._pair_reader = PairReader(self.pairs, self._tokenizer)
        self._batches = BatchProjections(self._model, self.vectors, self.batch_adapter)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the baseline, and the reading before the first step."""
        if not self._resumed:
            self._baseline, self._preference_baseline, self.readings = {}, {}, []
        self._resumed = False
        layers = {vector.trait: layers_read(vector, self.every_layer) for vector in self.vectors}
        known = {trait for trait, own in layers.items() if len(self._baseline.get(trait, ())) == len(own)}
        measured, new = None, not self._baseline and not self._preference_baseline
        unknown = [f"shift of {vector.trait}" for vector in self.vectors if vector.trait not in known]
        unknown += [f"preference of {trait}" for trait in self.pairs if trait not in self._preference_baseline]
        if unknown:
            if trainer.global_step and not removable_adapters(self._model):
                rank_zero_warn(
                    "PersonaMonitor: the model has no adapter to disable, so the base model can no longer be measured:"
                    f" the {', the '.join(unknown)} counts from step {trainer.global_step}"
                )
            with base_model(self._model):
                measured = self._measure(trainer)
            self._baseline = {**measured.projection} | {trait: self._baseline[trait] for trait in known}
            self._preference_baseline = {**measured.preference} | self._preference_baseline
        if not self.readings or any(vector.trait not in self.readings[-1].shift for vector in self.vectors):
            # Of an adapter that changes nothing yet, what was just measured of the base model is the reading.
            is_base = new and not is_sharded(self._model) and is_untrained(self._model)
            self._read(trainer, measured if is_base else None)
        self._step_seen = trainer.global_step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read this batch's response tokens when the model is run on them."""
        assert self._batches is not None
        self._batches.start(batch)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note what is logged of the step besides the model's character."""
        self._training.before_step(trainer, pl_module, optimizer, read=self._is_due(trainer.global_step + 1))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the batch's projection; log and measure when an optimizer step has made it due."""
        assert self._batches is not None
        self._batches.take()
        self._training.after_batch(trainer, outputs)
        if trainer.global_step == self._step_seen:
            return  # gradients are still being accumulated
        self._step_seen = trainer.global_step
        is_due = self._is_due(trainer.global_step)
        self._training.after_step(trainer, read=is_due)
        if is_logging_step(trainer):
            self._batches.log(trainer)
        if is_due:
            layers = trainer.global_step % self.every_n_steps == 0
            self._read(trainer, self._measure(trainer, layers, self._is_due(trainer.global_step, "preference")))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last reading, unless the last step made one."""
        if averages_weights(trainer):
            return  # the weights that the fit ends with may not be in the model yet
        if not self._ends_with_whole(trainer):
            self._read(trainer)
        log_course(trainer, self.readings)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the model; take the last reading if there was nothing left to train.

        Averaged weights are read here, since another callback puts them into the model in ``on_train_end``. A run
        resumed from a checkpoint of its last step ends without passing through ``on_train_end``.
        """
        nothing_trained = self._resumed and not self._ends_with_whole(trainer)
        if nothing_trained or (self.readings and not self._resumed and averages_weights(trainer)):
            with back_on_device(trainer, pl_module):
                self._read(trainer)
            log_course(trainer, self.readings)
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from the model."""
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def _detach(self) -> None:
        if self._batches is not None:
            self._batches.remove()
        self._batches = None

    def _is_due(self, step: int, sensor: Sensor | None = None) -> bool:
        """Whether a reading, or one of a sensor, is taken after so many optimizer steps."""
        asked = any(at == step and sensor in (None, of) for at, of in self._requests.values())
        own = step % self.every_n_steps == 0
        if sensor == "preference" and sensor not in self._needed:
            # In the first reading at or after each multiple.
            own = own and step // self.pairs_every_n_steps > (step - self.every_n_steps) // self.pairs_every_n_steps
        return own or asked

    def _measured_with(self) -> dict[str, dict[str, Any]]:
        """By trait, what its baseline and readings depend on beside the model."""
        return {
            vector.trait: {
                "vector": vector.fingerprint,
                "position": self.position,
                "probes": settings_fingerprint(self._probes_of(vector)),
                "pairs": settings_fingerprint(self.pairs.get(vector.trait, ())),
            }
            for vector in self.vectors
        }

    def _forget(self, traits: Collection[str]) -> None:
        """Drop the baseline and all readings of some traits."""
        self._baseline = without(self._baseline, traits)
        self._preference_baseline = without(self._preference_baseline, traits)
        self.readings = readings_without(self.readings, traits)

    def _probes_of(self, vector: PersonaVector) -> Sequence[str]:
        return vector.probes if self.probes is None else self.probes

    def _ends_with_whole(self, trainer: Trainer) -> bool:
        """Whether the last reading is of these optimizer steps, with pairs and every layer that is read."""
        last = self.readings[-1]
        whole = self.pairs.keys() <= last.preference.keys() and (last.shift_by_layer or not self.every_layer)
        return last.step == trainer.global_step and bool(whole)

    def _measure(self, trainer: Trainer, layers: bool = True, pairs: bool = True) -> Measured:
        """Read the model; if not all its ``layers``, the chosen ones, and if no ``pairs``, the probes alone."""
        every_layer = self.every_layer and layers
        projection = self._probe_reader.read(trainer, self._model, self.batch_size, every_layer)
        preference, share = self._pair_reader.read(trainer, self._model, self.batch_size) if pairs else ({}, {})
        return Measured(projection, preference, share, every_layer)

    def _read(self, trainer: Trainer, measured: Measured | None = None) -> None:
        """Take a reading of everything, or of what was measured, in place of an earlier one of the same steps."""
        self.readings = [reading for reading in self.readings if reading.step != trainer.global_step]
        baseline = Measured(self._baseline, self._preference_baseline, {}, self.every_layer)
        reading = (measured or self._measure(trainer)).since(baseline, self.vectors, trainer.global_step)
        log_reading(trainer, reading, self.readings[-1] if self.readings else None)
        self.readings.append(reading)
