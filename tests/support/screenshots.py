"""The README's pictures of report and explorer: `python -m tests.support.screenshots`."""

import queue
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import Browser, Page

from sim.report.page import CHARTED, save_page
from sim.runs.again import whole_points
from sim.runs.job import run_scenario
from sim.runs.scenario import make_scenario, read_scenario
from sim.web.app import serve
from sim.web.explorer import Explorer
from tests.support.browser import Visit, a_browser

DOCS = Path(__file__).parents[2] / "docs"


def take(page: Page, name: str, width: int, height: int) -> None:
    """The page's top, once its charts stand still."""
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(1500)
    page.screenshot(path=DOCS / f"{name}.png")


def report(browser: Browser) -> None:
    """The page of flash_vs_naive."""
    text = read_scenario("flash_vs_naive")
    scenario = make_scenario(text.data, text.name, text.where, text.folder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        records = [outcome.record for outcome in run_scenario(scenario)]
        save_page(text, records, whole_points(text, records, most=CHARTED), path)
        page = Visit(browser, offline=True).open_file(path)
        take(page, "report", 1240, 1260)
        page.select_option("#schedule", label="flash2")
        page.wait_for_timeout(1500)
        page.locator("section:has(#sm)").screenshot(path=DOCS / "inside.png")


def explorer(browser: Browser) -> None:
    """flash_vs_naive, with the HBM bandwidth doubled and the L2 halved."""
    ready: queue.Queue[str] = queue.Queue()
    page_of = Explorer(read_scenario("flash_vs_naive"), Path())
    threading.Thread(target=serve, args=(page_of, 0, ready.put), daemon=True).start()
    page = Visit(browser).page
    page.goto(ready.get())
    page.wait_for_selector("#time .textpoint")
    for key, arrow in (("hbm.bandwidth", "ArrowRight"), ("l2.capacity", "ArrowLeft")):
        page.locator(f"[id*='figure'][id*='\"{key}\"'] [role=slider]").focus()
        for _ in range(8):
            page.keyboard.press(arrow)
    page.locator("h1").click()
    page.get_by_text("25 MiB (×0.5)").wait_for()
    page.get_by_text("Changes are beside").wait_for()
    page.wait_for_function("!window.store.getState().isLoading")
    take(page, "explorer", 1440, 940)


if __name__ == "__main__":
    with a_browser() as chromium:
        report(chromium)
        explorer(chromium)
