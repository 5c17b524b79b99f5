"""Set-points from what the same recipe does on benign data."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from persona_callbacks.errors import InputError
from persona_callbacks.files import parse_json, settings_fingerprint, unexpected
from persona_callbacks.steering.reading import Reading, Sensor


@dataclass(frozen=True)
class Reference:
    """What the monitor read in another fine-tuning, as a set-point: by the share of training that is done.

    Training on benign data moves a model along traits too, so that the base model's value does not mean that nothing
    happened. A run of the same recipe on benign data, with the same vectors, probes and pairs, says what does. Between
    two of its readings the set-point lies on the line through them.

    Attributes:
        run: the folder of a finished fine-tuning of ``persona-train``, such as ``outputs/normal/seed-0/unsteered``, or
            its ``result.json``.

    Raises:
        InputError: in :meth:`check`, there is no such result, or it has no readings of a trait by the sensor.

    Example:
        >>> _ = Path("result.json").write_text(
        ...     '{"readings": [{"step": 0, "projection": {}, "shift": {"evil": 0.0}},'
        ...     ' {"step": 40, "projection": {}, "shift": {"evil": -4.0}}]}'
        ... )
        >>> Reference("result.json").at(0.5, "shift", ["evil"])
        {'evil': -2.0}
    """

    run: str | Path

    def check(self, sensor: Sensor, traits: Sequence[str]) -> None:
        """Make sure that every reading of the sensor has a value of each trait.

        Raises:
            InputError: one has not, or the result cannot be read.
        """
        for trait in traits:
            lacking = [reading.step for reading in self._of(sensor) if trait not in reading.values(sensor)]
            if lacking:
                has = sorted({known for reading in self.readings for known in reading.values(sensor)})
                raise InputError(
                    f"{self._file}: expected the {sensor} of {trait} in every reading, found none after {lacking[0]}"
                    f" optimizer steps; it has the {sensor} of {', '.join(has) or 'no trait'}"
                )

    def at(self, done: float, sensor: Sensor, traits: Sequence[str]) -> dict[str, float]:
        """The set-point by trait, in the sensor's units, when the share ``done`` of training, 0 to 1, is done."""
        step, readings = done * self.readings[-1].step, self._of(sensor)
        after = bisect_left(readings, step, key=lambda reading: reading.step)
        second = readings[min(after, len(readings) - 1)]
        first = readings[max(after - 1, 0)]
        weight = 1.0 if first is second else min(1.0, (step - first.step) / (second.step - first.step))
        return {
            trait: (1 - weight) * first.values(sensor)[trait] + weight * second.values(sensor)[trait]
            for trait in traits
        }

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """The readings of the run, oldest first.

        Raises:
            InputError: there is no such result, or it cannot be read.
        """
        try:
            content = parse_json(self._file.read_bytes())
            readings = tuple(Reading(**reading) for reading in content["readings"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise unexpected(str(self._file), error, "the result of a finished fine-tuning") from error
        if not readings or readings[-1].step == 0:
            raise InputError(f"{self._file}: expected readings of a fine-tuning of at least one step, found none")
        return readings

    def _of(self, sensor: Sensor) -> tuple[Reading, ...]:
        """The readings of a sensor; not all are of the preference. All, if it was never read."""
        return tuple(reading for reading in self.readings if reading.values(sensor)) or self.readings

    @property
    def fingerprint(self) -> str:
        """A hash of the readings: a run is resumed with the same set-points, wherever they are.

        Raises:
            InputError: the result cannot be read.
        """
        return settings_fingerprint(self.readings)

    @property
    def _file(self) -> Path:
        path = Path(self.run)
        return path / "result.json" if path.is_dir() else path
