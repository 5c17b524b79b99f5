"""What steering with a persona vector makes likelier: its own trait, other traits, and text that has no trait."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CausalPoint:
    """What steering the model at all layers does to what it finds likely, as changes of the log-probability in nats per
    token. None of the texts was used to make the vector.

    Example:
        >>> point = CausalPoint(1.0, gain=0.9, opposite=0.05, benign=-0.1, divergence=0.2, strength=0.1,
        ...                     others={"sycophancy": 0.3})
        >>> point.rival, round(point.specificity, 2)
        ('sycophancy', 0.6)

    Attributes:
        coefficient: factor of the vector.
        gain: of responses that show the trait: the *causal strength* at this coefficient.
        opposite: of the opposite responses.
        benign: of chats about everyday facts; the cost, where it is negative.
        divergence: the Kullback-Leibler divergence of the steered from the unsteered model on those chats.
        strength: the norm of what is added up to a layer, as a share of the norm of the stream there; mean over layers.
        others: by trait, of chats that show other traits.
    """

    coefficient: float
    gain: float
    opposite: float
    benign: float
    divergence: float
    strength: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def rival(self) -> str:
        """Which text, beside the trait's own, gains most: another trait's name, ``opposite`` or ``benign``."""
        return max(self._rivals, key=self._rivals.__getitem__)

    @property
    def specificity(self) -> float:
        """The gain less that of the :attr:`rival`, or less 0 if nothing else gains."""
        return self.gain - max(0.0, *self._rivals.values())

    @property
    def _rivals(self) -> dict[str, float]:
        return {"opposite": self.opposite, "benign": self.benign, **self.others}
