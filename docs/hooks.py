"""What the site takes from the repository: the studies as they stand, and the map of the rooms, drawn from the layer
contract in `pyproject.toml` and from the imports that are really there.
"""

import tomllib
from html import escape
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).parents[1]
BOX, COLUMN, HEIGHT, RISE = 112, 69, 34, 78
COLUMNS = {
    "apps": 6, "report": 4, "training": 1, "callbacks": 7, "extraction": 3, "screening": 1, "evaluation": 10,
    "labelling": 5, "steering": 8, "judging": 6, "model": 1, "vectors": 2, "chats": 1, "traits": 5, "files": 2,
    "palette": 4, "progress": 9, "tracking": 7,
}  # fmt: skip
"""Where each room stands in its layer, so that no arrow runs beneath a room. A new room needs a number here."""


def on_files(files: Any, config: Any) -> Any:
    """Add the studies with their figures and tables, so that links between them work as they do in the repository."""
    from mkdocs.structure.files import File  # only the site needs mkdocs: a test draws the map without it

    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.suffix in (".md", ".png", ".csv"):
            name = path.relative_to(ROOT / "experiments").as_posix()
            file = File.generated(config, f"studies/{name}", abs_src_path=str(path))
            files.append(file)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the map where a page asks for it."""
    return markdown.replace("<!-- map of the rooms -->", room_map() if "<!-- map of the rooms -->" in markdown else "")


def layers() -> list[list[str]]:
    """The rooms by layer, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = settings["tool"]["importlinter"]["contracts"]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def arrows() -> set[tuple[str, str]]:
    """Pairs of a room and another that it imports, without those that a longer way implies, and without the errors."""
    graph = grimp.build_graph("persona_callbacks", cache_dir=None)
    rooms = {room for layer in layers() for room in layer} - {"errors"}
    imports = {
        room: {
            other
            for other in rooms - {room}
            if graph.find_shortest_chain(f"persona_callbacks.{room}", f"persona_callbacks.{other}", as_packages=True)
        }
        for room in rooms
    }
    return {
        (room, other)
        for room in rooms
        for other in imports[room]
        if not any(other in imports[between] for between in imports[room])
    }


def room_map() -> str:
    """The map as SVG that needs no script."""
    rows = [layer for layer in layers() if layer != ["errors"]]
    width = max(COLUMNS.values()) * COLUMN + BOX + 20
    centre = {
        room: (10 + BOX / 2 + COLUMNS[room] * COLUMN, 10 + level * RISE + HEIGHT / 2)
        for level, row in enumerate(rows)
        for room in row
    }
    parts = [
        f'<svg viewBox="0 0 {width} {len(rows) * RISE}" role="img" aria-label="Map of the rooms"'
        ' style="max-width:46rem;width:100%;color:inherit">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>',
    ]
    for room, other in sorted(arrows()):
        (x, y), (to_x, to_y) = centre[room], centre[other]
        parts.append(
            f'<line x1="{x:.0f}" y1="{y + HEIGHT / 2:.0f}" x2="{to_x:.0f}" y2="{to_y - HEIGHT / 2:.0f}"'
            ' stroke="currentColor" stroke-opacity="0.55" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in centre.items():
        parts.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"'
            ' fill="#1f6f8b"/>'
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-size="15" fill="#fff">{escape(room)}</text>'
        )
    return "".join([*parts, "</svg>"])
