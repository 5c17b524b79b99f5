"""How many responses a persona vector rests on, and how good it is at each layer."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.vectors.causal import CausalPoint

_HIGHEST = 1 << 53
"""Whole numbers from here on are not exact as floats; JSON can hold larger ones than a float can."""


_CAUSAL = ("coefficient", "gain", "opposite", "benign", "divergence", "strength")
_OTHER = "causal_of_"


@dataclass(frozen=True)
class Counts:
    """How many responses a persona vector was made from.

    Example:
        >>> Counts(trait=80, opposite=95, generated_trait=100, generated_opposite=100).fewest
        80

    Attributes:
        trait: responses behind the mean of those that show the trait.
        opposite: responses behind the mean of the others.
        generated_trait: responses generated to show the trait, before filtering; 0 if that is not known.
        generated_opposite: responses generated not to show it, before filtering; 0 if that is not known.
    """

    trait: int
    opposite: int
    generated_trait: int = 0
    generated_opposite: int = 0

    @property
    def fewest(self) -> int:
        """The number of responses of the rarer kind."""
        return min(self.trait, self.opposite)

    @classmethod
    def from_mapping(cls, content: Any) -> "Counts":
        """Read what ``dataclasses.asdict`` gave, as files store it.

        Raises:
            InputError: a key is missing or unknown, or a value is not a whole number.
        """
        try:
            counts = cls(**content)
        except TypeError as error:
            raise InputError(
                f"expected the keys trait, opposite, generated_trait and generated_opposite, found {content!r}"[:300]
            ) from error
        for name, value in asdict(counts).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name}: expected a whole number of responses, found {value!r}"[:200])
        return counts


@dataclass(frozen=True)
class SweepPoint:
    """What steering at one layer did to the model's answers.

    Example:
        >>> SweepPoint(layer=12, expression=63.0, coherence=88.0).layer
        12

    Attributes:
        layer: where the direction was added.
        expression: mean trait expression of the answers, 0 to 100; NaN if no answer could be scored.
        coherence: mean coherence of the answers, 0 to 100.
    """

    layer: int
    expression: float
    coherence: float


@dataclass(frozen=True)
class Evidence:
    """How good a persona vector is, layer by layer; what was not measured is empty.

    Example:
        >>> evidence = Evidence(auc=(0.5, 0.9, 0.8), steering_effect={1: 0.3})
        >>> Evidence.from_statistics(evidence.statistics()) == evidence
        True

    Attributes:
        auc: for layers 0 to L, how well the direction from one half of the questions ranks the responses to the other
            half, from 0.5 (chance) to 1.
        cohens_d: for layers 0 to L, the gap between the two kinds of responses along that direction, in standard
            deviations.
        split_half_cosine: for layers 0 to L, the cosine between the directions of the two halves of the questions.
        pair_cosine: for layers 0 to L, the mean cosine between the differences of two questions.
        steering_effect: by layer, how much likelier steering there makes trait responses than opposite ones, in nats
            per token.
        sweep: what the model says when it is steered, layer by layer.
        unsteered_expression: trait expression without steering in that sweep, 0 to 100.
        causal: what steering at all layers makes likelier, by coefficient.
    """

    auc: tuple[float, ...] = ()
    cohens_d: tuple[float, ...] = ()
    split_half_cosine: tuple[float, ...] = ()
    pair_cosine: tuple[float, ...] = ()
    steering_effect: Mapping[int, float] = field(default_factory=dict)
    sweep: tuple[SweepPoint, ...] = ()
    unsteered_expression: float | None = None
    causal: tuple[CausalPoint, ...] = ()

    @property
    def causal_strength(self) -> CausalPoint | None:
        """The point with the greatest gain less what benign text loses; ``None`` if none was measured."""
        return max(self.causal, key=lambda point: point.gain + min(point.benign, 0.0), default=None)

    def statistics(self) -> dict[str, list[float]]:
        """What files store: lists of numbers by name, without those that are empty."""
        lists: dict[str, list[float]] = {
            "auc": list(self.auc),
            "cohens_d": list(self.cohens_d),
            "split_half_cosine": list(self.split_half_cosine),
            "steering_effect_layers": list(self.steering_effect),
            "steering_effect": list(self.steering_effect.values()),
            "sweep_layers": [point.layer for point in self.sweep],
            "sweep_expression": [point.expression for point in self.sweep],
            "sweep_coherence": [point.coherence for point in self.sweep],
            "unsteered_expression": [] if self.unsteered_expression is None else [self.unsteered_expression],
            "pair_cosine": list(self.pair_cosine),
            **{f"causal_{name}": [getattr(point, name) for point in self.causal] for name in _CAUSAL},
        }
        for trait in self.causal[0].others if self.causal else ():
            lists[f"{_OTHER}{trait}"] = [point.others[trait] for point in self.causal]
        return {name: values for name, values in lists.items() if values}

    @classmethod
    def from_statistics(cls, content: Any) -> "Evidence":
        """Read what :meth:`statistics` gave; other names are ignored.

        Raises:
            InputError: no lists of numbers, or lists that belong together differ in length.
        """
        if not isinstance(content, Mapping):
            raise InputError(f"expected lists of numbers by name, found {content!r}"[:200])
        effect_layers = _layers(content, "steering_effect_layers")
        sweep_layers = _layers(content, "sweep_layers")
        expressions = _numbers(content, "sweep_expression", len(sweep_layers))
        coherences = _numbers(content, "sweep_coherence", len(sweep_layers))
        unsteered = _numbers(content, "unsteered_expression")
        return cls(
            auc=_numbers(content, "auc"),
            cohens_d=_numbers(content, "cohens_d"),
            split_half_cosine=_numbers(content, "split_half_cosine"),
            steering_effect=dict(
                zip(effect_layers, _numbers(content, "steering_effect", len(effect_layers)), strict=True)
            ),
            sweep=tuple(map(SweepPoint, sweep_layers, expressions, coherences)),
            unsteered_expression=unsteered[0] if unsteered else None,
            pair_cosine=_numbers(content, "pair_cosine"),
            causal=_causal(content),
        )


def _causal(content: Mapping[str, Any]) -> tuple[CausalPoint, ...]:
    count = len(_numbers(content, "causal_coefficient"))
    measured = {name: _numbers(content, f"causal_{name}", count) for name in _CAUSAL}
    of_others = [name for name in content if isinstance(name, str) and name.startswith(_OTHER)]
    others = {name.removeprefix(_OTHER): _numbers(content, name, count) for name in of_others}

    def at(number: int, lists: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
        return {name: values[number] for name, values in lists.items()}

    return tuple(CausalPoint(**at(number, measured), others=at(number, others)) for number in range(count))


def _numbers(content: Mapping[str, Any], name: str, count: int | None = None) -> tuple[float, ...]:
    """The list of numbers under a name; empty if there is none."""
    values = content.get(name, [])
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise InputError(f"{name}: expected a list of numbers, found {values!r}"[:200])
    if not all(type(value) is float or abs(value) < _HIGHEST for value in values):
        raise InputError(f"{name}: expected numbers below {_HIGHEST}, found {values!r}"[:200])
    if count is not None and len(values) != count:
        raise InputError(f"{name}: expected {count} numbers, found {len(values)}")
    return tuple(values)


def _layers(content: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The list of layers under a name; older files have them as numbers with a point."""
    values = _numbers(content, name)
    if not all(value == round(value) if math.isfinite(value) else False for value in values):
        raise InputError(f"{name}: expected whole numbers, found {values!r}"[:200])
    return tuple(map(int, values))
