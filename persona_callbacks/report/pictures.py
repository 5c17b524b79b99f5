"""How the report's pictures look, and how matplotlib's become SVG elements of the page."""

import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from persona_callbacks.palette import BASE, SERIES

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BASE,
    "axes.labelcolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}
WIDTH = 4.4  # inches: readable at the width of a phone


def colour(number: int) -> str:
    """Return the colour of run or setting ``number``."""
    return SERIES[number % len(SERIES)]


def mark(number: int) -> str:
    """Return the shape that stands for run or setting ``number``; it changes where the colours begin again."""
    return "●■▲◆"[number // len(SERIES) % 4]


def in_lines(name: str, most: int = 26) -> str:
    r"""Break a long name into two lines of at most ``most`` characters, after a comma, slash or space where it has one;
    what is longer is cut.

    Example:
        >>> in_lines("data=evil,seed=0,steering=adaptive")
        'data=evil,seed=0,\nsteering=adaptive'
    """
    if len(name) <= most:
        return name
    end = max(name.rfind(mark, 0, most) for mark in ",/ ") + 1 or most
    first, rest = name[:end].rstrip(), name[end:]
    return f"{first}\n{rest if len(rest) <= most else rest[: most - 1] + '…'}"


def style(number: int, run: int | None = None) -> dict[str, Any]:
    """Return how matplotlib draws run or setting ``number``; what is drawn belongs to ``run``, by default the same."""
    turn = number // len(SERIES) % 4
    return {
        "color": colour(number), "marker": "os^D"[turn], "linestyle": ("-", "--", ":", "-.")[turn],
        "gid": f"run-{number if run is None else run}",
    }  # fmt: skip


def as_svg(figure: Figure, description: str, tips: Sequence[Sequence[str]] = (), steps: Axes | None = None) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page and whose ids no other figure has.

    Args:
        figure: what to draw.
        description: says what it shows; unlike that of any other figure of the page.
        tips: for each line of a run, in the order in which they were drawn, what its points say under the pointer.
        steps: axes whose horizontal one is of steps, if the page is to zoom in on them.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = _with_tips(text.getvalue(), tips)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    prefix = f"c{hashlib.sha256(description.encode()).hexdigest()[:10]}-"
    inside = svg[svg.index(">", box.end()) + 1 :]
    inside = re.sub(r'\bid="(run-\d+)"', r'class="\1"', inside)
    inside = re.sub(r'\bid="', f'id="{prefix}', inside)
    inside = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", inside)
    # A style inside a picture would apply to the whole page, whose own style covers the pictures.
    inside = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", inside, flags=re.DOTALL)
    zoom = "" if steps is None else f' data-zoom="{_ends(steps, figure)}"'
    return f'<svg {box[0]}{zoom} role="img" aria-label="{html.escape(description, quote=True)}">{inside.strip()}'


def _ends(axes: Axes, figure: Figure) -> str:
    """Where the horizontal axis begins and ends, in units of the picture and in steps."""
    width = figure.get_figwidth() * 72
    place = axes.get_position()
    return " ".join(f"{number:.6g}" for number in (place.x0 * width, place.x1 * width, *axes.get_xlim()))


def _with_tips(svg: str, tips: Sequence[Sequence[str]]) -> str:
    """Give each marker of the lines of runs and models a title, which browsers show under the pointer."""
    parts = re.split(r'(?=<g id="(?:run|model)-\d+">)', svg)
    for number, of_line in enumerate(tips, start=1):
        markers = iter(of_line)
        parts[number] = re.sub(r"(<use [^>]*?)/>", lambda use: _titled(use, markers), parts[number], count=len(of_line))  # noqa: B023, used at once
    return "".join(parts)


def _titled(use: re.Match[str], markers: Iterator[str]) -> str:
    return f"{use[1]}><title>{html.escape(next(markers))}</title></use>"
