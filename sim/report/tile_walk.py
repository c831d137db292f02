"""The tile walk over the score matrix: which level served each load, and in what order they came.

Rows are tiles of queries, columns tiles of keys, of the first matrices (the heads of a sequence)
that were watched. What no load touches, the mask's or a pruned part, stays empty.
"""

from dataclasses import dataclass
from html import escape
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.watched import Fetch, Served, Watched
from sim.report.chart import INK, Chart, axis, chart
from sim.tile_program import Kernel, Load, Role, Stream, Tensor

ROWS, COLUMNS = 64, 128  # about so many at most: of whole matrices, or of the first one a part
PLACES = ("walk", "walk_beside")  # of charts: a tensor that moves each
ARROWS = 8  # rows whose walk is drawn
ROLES: tuple[Role, ...] = ("key", "value", "query")
LEVELS: tuple[Served, ...] = ("L2", "on its way", "HBM")  # of several loads of a cell the last
WORDS: dict[Served, str] = {"L2": "L2 hit", "on its way": "on its way", "HBM": "HBM miss"}
SAID: dict[Served, str] = {
    "L2": "from L2",
    "on its way": "on their way for another CTA",
    "HBM": "from HBM",
}
READ = "Darkest is what was loaded first; an arrow runs from a row's first load to its last."
# From a level's first load to its last.
SHADES: dict[Served, tuple[str, str]] = {
    "L2": ("#08306b", "#b7d4ea"),
    "HBM": ("#8c2d04", "#fdcc9a"),
    "on its way": ("#00441b", "#b5e0ae"),
}


@dataclass(frozen=True)
class _Cell:
    """A load's place: its matrix of queries, and its first and last rows of queries and of keys."""

    group: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    fetch: Fetch


def tile_walk(seen: Watched) -> dict[str, Chart]:
    """A chart for each tensor that moves over the score matrix, by the names of their places.

    None of a kernel that does not load queries and keys.
    """
    return {
        place: _chart(seen, tensor)
        for place, tensor in zip(PLACES, moving(seen.kernel), strict=False)
    }


def said(seen: Watched) -> str:
    """How many loads of those tensors each level served; nothing without such."""
    parts = []
    for tensor in moving(seen.kernel):
        own = [fetch.served for fetch in seen.fetches if fetch.tensor is tensor]
        shares = [f"{own.count(one) / len(own):.0%} {SAID[one]}" for one in LEVELS if one in own]
        of = "" if seen.whole else f" of {loads_of(seen.kernel)[tensor]:,}"
        parts.append(f"{len(own):,}{of} loads of {tensor.name}: {', '.join(shares)}")
    return f"{'; '.join(parts)}. {READ}" if parts else ""


def moving(kernel: Kernel) -> list[Tensor]:
    """Those of keys, values and queries that it loads most often; none if not queries and keys."""
    loads = loads_of(kernel)
    if not {"query", "key"} <= {tensor.role for tensor in loads}:
        return []
    known = [tensor for role in ROLES for tensor in loads if tensor.role == role]
    most = max(loads[tensor] for tensor in known)
    return [tensor for tensor in known if 2 * loads[tensor] > most][: len(PLACES)]


def loads_of(kernel: Kernel) -> dict[Tensor, int]:
    """How many tiles of each tensor all of the kernel loads."""
    loads: dict[Tensor, int] = {}
    for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True):
        for load in loop.loads:
            loads[load.stream.tensor] = loads.get(load.stream.tensor, 0) + trips
    return loads


def _of_role(kernel: Kernel, role: Role) -> list[Load]:
    return [load for loop in kernel.loops for load in loop.loads if load.stream.tensor.role == role]


def _cells(seen: Watched, tensor: Tensor) -> list[_Cell]:
    """Where the tensor's loads stand in the score matrix, in the order of their issue."""
    places = {role: _Places(seen.kernel, role) for role in ("query", "key")}
    cells = []
    for fetch in seen.fetches:
        if fetch.tensor is tensor:
            own = _rows_of(fetch.load.stream, fetch.tile)
            queries = own if tensor.role == "query" else places["query"].beside(fetch)
            keys = places["key"].beside(fetch) if tensor.role == "query" else own
            cells.append(_Cell(queries[0], queries[1:], keys[1:], fetch))
    return cells


class _Places:
    """Where the tiles of a role stand while others move: those of the same trip, else the first."""

    def __init__(self, kernel: Kernel, role: Role) -> None:
        self.kernel, self.loads = kernel, _of_role(kernel, role)

    def beside(self, fetch: Fetch) -> tuple[int, int, int]:
        """Matrix and rows of the role's tile that is multiplied with the fetched one."""
        loop = next(loop for loop in self.kernel.loops if fetch.load in loop.loads)
        same = [load for load in self.loads if load in loop.loads]
        load, trip = (same[0], fetch.trip) if same else (self.loads[0], 0)
        return _rows_of(load.stream, load.stream.tile_of(fetch.item, trip))


def _rows_of(stream: Stream, tile: int) -> tuple[int, int, int]:
    """A tile's matrix, its first row there and the one after its last."""
    tensor = stream.tensor
    group, down = divmod(tile // stream.tiles_across, stream.tiles_down)
    before = 0 if tensor.rows_before is None else int(tensor.rows_before[group])
    first = down * stream.tile_rows
    end = min(first + stream.tile_rows, tensor.size_of(group)[0])
    return group, before + first, before + end


@dataclass(frozen=True)
class _Scale:
    """Rows of a tensor as cells of so many: of the smallest tile, or more where these are many."""

    first: int
    cell: int
    cells: int

    @classmethod
    def of(cls, spans: list[tuple[int, int]], streams: list[Stream], most: int) -> "_Scale":
        """A scale over these spans of rows."""
        tile = gcd(*(stream.tile_rows for stream in streams))
        first = min(span[0] for span in spans) // tile * tile
        rows = max(span[1] for span in spans) - first
        cell = tile * -(-rows // (tile * most))
        return cls(first, cell, -(-rows // cell))

    def slice_of(self, span: tuple[int, int]) -> slice:
        """The cells that a span of rows lies in."""
        return slice((span[0] - self.first) // self.cell, -(-(span[1] - self.first) // self.cell))


def _chart(seen: Watched, tensor: Tensor) -> Chart:
    cells = _cells(seen, tensor)
    groups = sorted({cell.group for cell in cells})
    queries = [load.stream for load in _of_role(seen.kernel, "query")]
    keys = [load.stream for role in ("key", "value") for load in _of_role(seen.kernel, role)]
    down = _Scale.of([cell.queries for cell in cells], queries, COLUMNS)
    groups = groups[: max(1, ROWS // down.cells)]
    cells = [cell for cell in cells if cell.group in groups]
    across = _Scale.of([cell.keys for cell in cells], keys, COLUMNS)
    walk = _Walk.of(cells, groups, down, across)
    height = 200 + min(420, max(120, 7 * len(walk.level)))
    return chart(
        f"Loads of {escape(tensor.name)}, {_heads(seen, groups)}",
        [_heatmap(walk, across), _arrows(walk, across)],
        height=height,
        xaxis=axis("keys, tokens", showgrid=False, tickformat=",d"),
        yaxis=axis("", autorange="reversed", showgrid=False, **_ticks(groups, down)),
        showlegend=False,
    )


def _heads(seen: Watched, groups: list[int]) -> str:
    """Which matrices of queries are shown."""
    of = _of_role(seen.kernel, "query")[0].stream.tensor.groups
    if len(groups) == 1:
        return f"head {groups[0]} of {of:,}"
    in_a_row = groups[-1] - groups[0] + 1 == len(groups)
    return (
        f"{f'heads {groups[0]} to {groups[-1]}' if in_a_row else f'{len(groups)} heads'} of {of:,}"
    )


def _ticks(groups: list[int], down: _Scale) -> dict[str, Any]:
    """Each matrix's first row by name; of a single one some rows by their queries."""
    if len(groups) > 1:
        places = [number * down.cells for number in range(len(groups))]
        return {"tickvals": places, "ticktext": [f"head {group}" for group in groups]}
    places = list(range(0, down.cells, max(1, down.cells // 6)))
    texts = [f"query {down.first + place * down.cell:,}" for place in places]
    return {"tickvals": places, "ticktext": texts}


@dataclass(frozen=True)
class _Walk:
    """The cells as arrays of shape (rows, columns), of what first came to each of them.

    `level` is -1 where nothing did, and of several loads the farthest; `number` counts them.
    """

    level: NDArray[np.int64]
    number: NDArray[np.int64]
    time_s: NDArray[np.float64]
    cta: NDArray[np.int64]
    query: NDArray[np.int64]

    @classmethod
    def of(cls, cells: list[_Cell], groups: list[int], down: _Scale, across: _Scale) -> "_Walk":
        """The matrices of these groups below one another."""
        shape = (len(groups) * down.cells, across.cells)
        number, cta, query = (np.zeros(shape, np.int64) for _ in range(3))
        walk = cls(np.full(shape, -1), number, np.zeros(shape), cta, query)
        for order, cell in enumerate(cells):
            top, rows = groups.index(cell.group) * down.cells, down.slice_of(cell.queries)
            place = np.s_[top + rows.start : top + rows.stop, across.slice_of(cell.keys)]
            new = walk.level[place] < 0
            walk.number[place][new] = order
            walk.time_s[place][new] = cell.fetch.issued_s
            walk.cta[place][new] = cell.fetch.cta
            walk.query[place][new] = cell.queries[0]
            level = LEVELS.index(cell.fetch.served)
            walk.level[place] = np.maximum(walk.level[place], level)
        return walk


def _heatmap(walk: _Walk, across: _Scale) -> dict[str, Any]:
    """A colour a level, darkest at the first load; `z` is the level and the share of the walk."""
    level, there = walk.level, walk.level >= 0
    z = level + 0.98 * walk.number / max(walk.number.max(), 1)
    told = zip(walk.query, walk.number + 1, walk.time_s, walk.cta, strict=True)
    return {
        "type": "heatmap",
        "z": [
            [round(float(value), 3) if ok else None for value, ok in zip(*row, strict=True)]
            for row in zip(z, there, strict=True)
        ],
        "x0": across.first + across.cell / 2,
        "dx": across.cell,
        "text": [[LEVELS[value] if value >= 0 else "" for value in row] for row in level],
        "customdata": [
            [
                [int(query), int(number), float(f"{time_s:.4g}"), int(cta)]
                for query, number, time_s, cta in zip(*row, strict=True)
            ]
            for row in told
        ],
        "hovertemplate": "queries from %{customdata[0]:,d} on, keys about %{x:,d}: %{text}<br>"
        "number %{customdata[1]:,d} of these, at %{customdata[2]:.4s}s, CTA %{customdata[3]}"
        "<extra></extra>",
        "hoverongaps": False,
        "zmin": 0,
        "zmax": len(LEVELS),
        "colorscale": [
            stop
            for place, one in enumerate(LEVELS)
            for stop in (
                [place / len(LEVELS), SHADES[one][0]],
                [(place + 1) / len(LEVELS), SHADES[one][1]],
            )
        ],
        "xgap": 1 if across.cells <= COLUMNS // 2 else 0,
        "ygap": 1,
        "colorbar": {
            "orientation": "h",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "thickness": 12,
            "len": 1,
            "tickvals": [place + 0.5 for place in range(len(LEVELS))],
            "ticktext": [WORDS[one] for one in LEVELS],
        },
    }


def _arrows(walk: _Walk, across: _Scale) -> dict[str, Any]:
    """In some rows a line from the first load to the last."""
    x: list[float | None] = []
    y: list[int | None] = []
    rows = [row for row, level in enumerate(walk.level) if (level >= 0).sum() > 1]
    for row in rows[:: max(1, -(-len(rows) // ARROWS))]:
        columns = np.flatnonzero(walk.level[row] >= 0)
        walked = columns[np.argsort(walk.number[row, columns], kind="stable")]
        ends = (walked[0], walked[-1])
        x += [*(across.first + (float(end) + 0.5) * across.cell for end in ends), None]
        y += [row, row, None]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "line": {"color": "white", "width": 1.5},
        "marker": {
            "symbol": "arrow",
            "angleref": "previous",
            "color": "white",
            "size": [0, 11, 0] * (len(x) // 3),
            "line": {"color": INK, "width": 0.7},
        },
        "hoverinfo": "skip",
    }
