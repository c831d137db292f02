"""How long the explorer takes from a slider's movement to the chart that shows it, in a browser.

    python benchmarks/explorer.py [--json]

Each slider is moved a step by the keyboard, 20 times; what counts is the time from the key to the
end of Plotly's drawing, with everything between: the page's request, the replays of all schedules
on the changed device, the reply, the chart. Needs what the tests need.
"""

import argparse
import json
import queue
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

from sim.runs.scenario import read_scenario
from sim.web.app import serve
from sim.web.explorer import Explorer

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.browser import Visit, a_browser

QUESTIONS = (
    ("flash_vs_naive", ()),
    ("flash_vs_naive", ("workload.seq_len=16384",)),
    ("gpt2_medium_a100", ()),
    ("llama3_8b_long", ("sweep={}", "workload.seq_len=131072")),
    ("hip_vs_flash", ("sweep={}", "workload.seq_len=1048576")),
)
SLIDERS = ("hbm.bandwidth", "l2.capacity", "sm.count")
WATCH = """() => {
    window.took_ms = [];
    let pressed = null;
    addEventListener('keydown', () => { pressed = performance.now(); }, true);
    document.querySelector('#time .js-plotly-plot').on('plotly_afterplot', () => {
        if (pressed !== null) { took_ms.push(performance.now() - pressed); pressed = null; }
    });
}"""


def latencies_s(page: Any) -> list[float]:
    """From each key to its chart."""
    page.evaluate(WATCH)
    for slider in SLIDERS:
        page.locator(f"[id*='figure'][id*='\"{slider}\"'] [role=slider]").focus()
        for _ in range(20):
            done = page.evaluate("took_ms.length")
            page.keyboard.press("ArrowRight" if slider != "l2.capacity" else "ArrowLeft")
            page.wait_for_function(f"took_ms.length > {done}")
    return [ms / 1e3 for ms in page.evaluate("took_ms")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    as_json = parser.parse_args().json
    rows = []
    with a_browser() as browser:
        for scenario, settings in QUESTIONS:
            ready: queue.Queue[str] = queue.Queue()
            explorer = Explorer(read_scenario(scenario, settings), Path())
            arguments = (explorer, 0, ready.put)
            threading.Thread(target=serve, args=arguments, daemon=True).start()
            visit = Visit(browser, width=1440)
            visit.page.goto(ready.get())
            visit.page.wait_for_selector("#time .textpoint")
            took_s = latencies_s(visit.page)
            visit.context.close()
            rows.append(
                {
                    "scenario": " ".join((scenario, *settings)),
                    "schedules": len(explorer.titles),
                    "moves": len(took_s),
                    "median_s": statistics.median(took_s),
                    "worst_s": max(took_s),
                }
            )
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['scenario']}, {row['schedules']} schedules: median {row['median_s']:.2f} s, "
            f"worst {row['worst_s']:.2f} s of {row['moves']} moves"
        )


if __name__ == "__main__":
    main()
