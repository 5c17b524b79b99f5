"""What the report shows of labels: how often readers who did not know the run found the trait."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persona_callbacks.labelling import LabelFolder, LabelResults, label_results


@dataclass(frozen=True)
class LabelSection:
    """The labels of a folder as tables of text.

    Attributes:
        name: of the folder.
        trait: what was labelled.
        readers: who labelled how many answers, in words.
        rates: a row for each run: its name, counts, and rate with interval.
        rankings: a row for each score.
        agreements: a row for each two readers.
        warnings: what speaks against relying on the judge, in words.
    """

    name: str
    trait: str
    readers: str
    rates: tuple[tuple[str, ...], ...]
    rankings: tuple[tuple[str, ...], ...]
    agreements: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]


def label_folders(folders: Sequence[str | Path]) -> list[Path]:
    """The folders of ``persona-label`` at or below these folders that hold labels.

    Raises:
        InputError: a sheet there that cannot be read.
    """
    keys = [key for folder in folders for key in sorted(Path(folder).absolute().rglob("key.jsonl"))]
    return [key.parent for key in dict.fromkeys(keys) if LabelFolder(key.parent).sheets()]


def label_sections(folders: Sequence[str | Path]) -> list[LabelSection]:
    """One section for each folder of ``persona-label``.

    Raises:
        InputError: a folder without labels.
    """
    return [_section(Path(folder).name, label_results(LabelFolder(folder))) for folder in dict.fromkeys(folders)]


def _section(name: str, results: LabelResults) -> LabelSection:
    said = ", ".join(f"{reader}: {count}" for reader, count in results.readers.items())
    return LabelSection(
        name=name,
        trait=results.trait,
        readers=f"{results.different} different answers; labelled by {said}",
        rates=tuple(
            (rate.run, *map(str, (rate.answers, rate.yes, rate.no, rate.unsure, rate.rate))) for rate in results.rates
        ),
        rankings=tuple(
            (name, *map(str, (part.answers, part.runs_within, part.within, part.between, part.pooled, part.spearman)))
            for name, part in results.rankings.items()
        ),
        agreements=tuple(
            (" / ".join(pair.readers), str(pair.answers), f"{pair.agreement:.0%}", f"{pair.kappa:.2f}")
            for pair in results.agreements
        ),
        warnings=results.weaknesses,
    )
