"""One SM over time: what its CTAs' workers, pipes and buffers do, and what each waits for."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from sim.engine.watched import Span, Watched
from sim.inputs.units import show
from sim.machine import CAUSES as PIPES
from sim.report.chart import CAUSES, INK, LEGEND_ROW, Chart, Trace, axis, chart, si_axis
from sim.report.notes import CAUSES_IN_WORDS

WORKER_ROWS, BUFFER_ROWS = 6, 8  # at most: of the SM's first slots, of its first slot
SHOWN_RUNS = 12  # of the first row, in the stretch that is seen at first
MOST_BARS = 2_000  # beyond them the browser is slow: the chart ends earlier then
ROW_HEIGHT = 24  # pixels
OF_ONE = CAUSES_IN_WORDS | {"sm_port": "port to L2"}
WAITS: dict[str, tuple[str, str]] = {  # in the legend, by colour; drawn hatched
    "HBM": ("waits: HBM", "#0072B2"),
    "L2": ("waits: L2", "#56B4E9"),
    "pipe": ("waits: pipe in use", "#D55E00"),
    "buffer": ("waits: free buffer", "#009E73"),
    "workers": ("waits: other workers", "#888888"),
    "store": ("waits: its store", "#A6761D"),
}
LATENCY, STARTS = ("latency", "#888888"), ("CTA starts", "#444444")
COMES, HELD = ("tile comes", "#0072B2"), ("tile held", "#7A8CC4")
ANY = ("any SM's use", "#cccccc")


@dataclass(frozen=True)
class _Bar:
    """A stretch of a row: what it is in the legend, what the mouse tells, what stands in it.

    Its row says all of one that is not in the legend.
    """

    row: str
    start_s: float
    end_s: float
    legend: str
    colour: str
    tip: str
    text: str = ""
    hatched: bool = False


def one_sm(seen: Watched) -> Chart:
    """Rows of workers, of pipes and of buffers; first some trips, by a button all that is drawn."""
    bars = sorted([*_workers(seen), *_pipes(seen), *_buffers(seen)], key=lambda bar: bar.start_s)
    bars = bars[:MOST_BARS]
    rows = [*_worker_rows(seen), *_pipe_rows(seen), *_buffer_rows(seen)]
    rows = [row for row in rows if any(bar.row == row for bar in bars)]
    end_s = max((bar.end_s for bar in bars), default=1.0)
    first, last = _stretch(seen, end_s)
    menu = {
        "type": "buttons",
        "direction": "right",
        "buttons": [
            _button("a few trips", first, last),
            _button("all that is drawn", 0.0, end_s),
        ],
        "x": 1,
        "xanchor": "right",
        "y": 1,
        "yanchor": "bottom",
    }
    traces = _traces(bars)
    in_legend = sum(trace["showlegend"] for trace in traces)
    return chart(
        f"SM {seen.sm} over time",
        traces,
        height=190 + ROW_HEIGHT * len(rows) + LEGEND_ROW * in_legend,
        margin={"l": 60, "r": 20, "t": 90, "b": 50},
        barmode="overlay",
        bargap=0.15,
        xaxis=si_axis("", "s", range=[first, last]),
        yaxis=axis(
            "",
            type="category",
            categoryorder="array",
            categoryarray=rows,
            autorange="reversed",
            showgrid=False,
            tickfont={"size": 11},
        ),
        uniformtext={"minsize": 9, "mode": "hide"},
        updatemenus=[menu],
    )


def said(seen: Watched) -> str:
    """What was watched, and what its workers' time goes to."""
    until = "to its end at" if seen.whole else "for its first"
    much = f"{until} {show(seen.until_s, 's')}"
    time_s: dict[str, float] = {}
    for span in seen.spans:
        what = _why(span)
        time_s[what] = time_s.get(what, 0.0) + span.end_s - span.start_s
    total_s = sum(time_s.values())
    most = sorted(time_s.items(), key=lambda entry: -entry[1])[:5]
    shares = ", ".join(f"{part_s / total_s:.0%} {what}" for what, part_s in most)
    return (
        f"Kernel {seen.kernel.name}, replayed event by event from an empty L2 {much}. "
        f"A worker of SM {seen.sm}: {shares}."
    )


def _why(span: Span) -> str:
    """What a worker does, without which op or tile."""
    if span.doing == "runs":
        return f"runs, paced by {_words(span.why)}"
    if span.doing == "latency":
        return "waits for a result"
    if span.doing == "pipe":
        return f"waits for {_words(span.why)} in use by others"
    if span.doing == "load":
        return f"waits for {span.what} ({_words(span.why)})"
    if span.doing == "buffer":
        return f"waits for a free buffer of {span.what}"
    if span.doing == "starts":
        return "starts CTAs"
    return f"waits for {span.what}"


def _words(why: str) -> str:
    """A cause in words, be it alone or in use by others."""
    cause, _, more = why.partition(" ")
    return f"{OF_ONE.get(cause, cause)} {more}".strip()


def _colour(cause: str) -> str:
    return next(colour for colour, causes in CAUSES.values() if cause in causes)


def _workers(seen: Watched) -> Iterator[_Bar]:
    """What the workers do."""
    rows = _worker_rows(seen)
    for span in seen.spans:
        row = _worker_row(seen, span.slot, span.worker)
        if row not in rows:
            continue
        of_trip = f", trip {span.trip}" if span.doing in ("runs", "pipe", "latency", "load") else ""
        name = f"{span.what}{of_trip}: " if span.doing in ("runs", "pipe", "latency") else ""
        tip = f"CTA {span.cta}, {name}{_why(span)}"
        times = (row, span.start_s, span.end_s)
        if span.doing == "runs":
            legend = f"runs: {OF_ONE[span.why]}"
            yield _Bar(*times, legend, _colour(span.why), tip, span.what)
        elif span.doing == "latency":
            yield _Bar(*times, *LATENCY, tip)
        elif span.doing == "starts":
            yield _Bar(*times, *STARTS, tip, f"CTA {span.cta} starts")
        else:
            wait = span.doing if span.doing != "load" else _level(span.why)
            text = {"load": f"{span.what} {span.trip}", "pipe": _words(span.why)}
            yield _Bar(*times, *WAITS[wait], tip, text.get(span.doing, ""), hatched=True)


def _level(why: str) -> str:
    """The level that a load waited for."""
    return "HBM" if why.startswith(("hbm", "another")) else "L2"


def _worker_row(seen: Watched, slot: int, worker: int) -> str:
    of_sm = slot - seen.sm * seen.ctas_per_sm
    workers = seen.kernel.footprint.workers
    return f"CTA slot {of_sm}" + (f", worker {worker}" if workers > 1 else "")


def _worker_rows(seen: Watched) -> list[str]:
    slots = range(seen.sm * seen.ctas_per_sm, (seen.sm + 1) * seen.ctas_per_sm)
    workers = range(seen.kernel.footprint.workers)
    return [_worker_row(seen, slot, worker) for slot in slots for worker in workers][:WORKER_ROWS]


def _pipe_rows(seen: Watched) -> list[str]:
    return [OF_ONE[cause] for cause in PIPES if cause in seen.own]


def _pipes(seen: Watched) -> Iterator[_Bar]:
    """When pipes serve: L2 and HBM other SMs too, beneath what they serve of this one."""
    for cause, intervals in seen.all_sms.items():
        row = OF_ONE[cause]
        for interval in intervals:
            yield _Bar(row, *interval, *ANY, f"{row} in use by any SM")
    for cause, intervals in seen.own.items():
        row = OF_ONE[cause]
        for interval in intervals:
            yield _Bar(row, *interval, "", _colour(cause), f"{row} serves SM {seen.sm}")


def _buffer_rows(seen: Watched) -> list[str]:
    loads = [load for loop in seen.kernel.loops for load in loop.loads]
    rows = [_buffer_row(seen, load, number) for load in loads for number in range(load.buffers)]
    return list(dict.fromkeys(rows))[:BUFFER_ROWS]


def _buffer_row(seen: Watched, load: Any, number: int) -> str:
    """A buffer's row: loads of one tensor in several loops are told apart."""
    same = [
        one
        for loop in seen.kernel.loops
        for one in loop.loads
        if one.stream.tensor is load.stream.tensor
    ]
    of_loop = f" ({same.index(load) + 1})" if len(same) > 1 else ""
    place = f" {number}" if load.buffers > 1 else ""
    return f"buffer {escape(load.stream.tensor.name)}{place}{of_loop}"


def _buffers(seen: Watched) -> Iterator[_Bar]:
    """The buffers of the SM's first slot: a tile comes, and is held until its last reader."""
    rows = _buffer_rows(seen)
    for fetch in seen.fetches:
        row = _buffer_row(seen, fetch.load, fetch.trip % fetch.load.buffers)
        if fetch.slot != seen.sm * seen.ctas_per_sm or row not in rows:
            continue
        name = f"CTA {fetch.cta}, {fetch.tensor.name} of trip {fetch.trip}"
        tip = f"{name} comes, served by {fetch.served}; longest: {_words(fetch.slow)}"
        yield _Bar(row, fetch.issued_s, fetch.arrival_s, *COMES, tip, fetch.served, hatched=True)
        freed_s = seen.until_s if fetch.freed_s is None else fetch.freed_s
        if freed_s > fetch.arrival_s:
            text = f"trip {fetch.trip}"
            yield _Bar(row, fetch.arrival_s, freed_s, *HELD, f"{name} is held", text)


def _stretch(seen: Watched, end_s: float) -> tuple[float, float]:
    """From the first load to a few runs of the first row later."""
    own = [fetch.issued_s for fetch in seen.fetches if fetch.sm == seen.sm]
    slot = seen.sm * seen.ctas_per_sm
    runs = [s for s in seen.spans if (s.slot, s.worker, s.doing) == (slot, 0, "runs")]
    last_s = min(runs[:SHOWN_RUNS][-1].end_s, end_s) if runs else end_s
    first_s = min(own, default=0.0)
    return max(0.0, first_s - 0.02 * (last_s - first_s)), last_s


def _button(label: str, first_s: float, last_s: float) -> dict[str, Any]:
    return {"label": label, "method": "relayout", "args": [{"xaxis.range": [first_s, last_s]}]}


def _traces(bars: list[_Bar]) -> list[Trace]:
    """A trace for each thing of the legend, in order of first sight; any SM's use lies beneath."""
    kinds: dict[tuple[str, str, bool], list[_Bar]] = {}
    for bar in bars:
        kinds.setdefault((bar.legend, bar.colour, bar.hatched), []).append(bar)
    beneath = sorted(kinds.items(), key=lambda kind: kind[0][0] != ANY[0])
    return [_trace(*kind, own) for kind, own in beneath]


def _trace(legend: str, colour: str, hatched: bool, bars: list[_Bar]) -> Trace:
    pattern = {"shape": "/", "fgcolor": colour, "bgcolor": "white", "size": 5, "solidity": 0.35}
    return {
        "type": "bar",
        "orientation": "h",
        "name": legend,
        "showlegend": bool(legend),
        "base": [_rounded(bar.start_s) for bar in bars],
        "x": [_rounded(bar.end_s - bar.start_s) for bar in bars],
        "y": [bar.row for bar in bars],
        "text": [escape(bar.text) for bar in bars],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "insidetextfont": {"color": INK if hatched else "white"},
        "customdata": [[escape(bar.tip), show(bar.end_s - bar.start_s, "s")] for bar in bars],
        "hovertemplate": "%{customdata[0]}: %{customdata[1]} from %{base:.4s}s on<extra></extra>",
        "marker": {
            "color": colour,
            "line": {"width": 0.5, "color": colour if hatched else "white"},
            **({"pattern": pattern} if hatched else {}),
        },
    }


def _rounded(time_s: float) -> float:
    """To a picosecond, below which nothing is seen: it takes fewer digits."""
    return round(time_s, 12)
