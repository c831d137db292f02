"""A real browser, headless: Chrome or Chromium driven by Playwright.

The one that is installed; else Debian's package where that can be installed, else the build that
Playwright fetches. Pages are opened in it as a user would, and what they log or ask for is kept.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.waiting import GUARD_S

INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [  # a browser that talks to nobody
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]
GUARD_MS = GUARD_S * 1e3
expect.set_options(timeout=GUARD_MS)


def executable() -> str | None:
    """Where the browser is, once it is installed; None for the one that Playwright keeps."""
    for name in INSTALLED:
        if found := shutil.which(name):
            return found
    if shutil.which("apt-get") and os.geteuid() == 0:  # a container, which has no libraries for it
        subprocess.run(["apt-get", "-qq", "update"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "-qq", "-y", "install", "chromium"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )
        return shutil.which("chromium")
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)
    return None


@contextmanager
def a_browser() -> Iterator[Browser]:
    """The browser, until the end of the block."""
    path = executable()
    with sync_playwright() as playwright:
        sandboxed = os.geteuid() != 0  # as root Chromium wants to be without
        browser = playwright.chromium.launch(
            executable_path=path, args=QUIET, chromium_sandbox=sandboxed, timeout=GUARD_MS
        )
        yield browser
        browser.close()


class Visit:
    """A page that is open, what it asked for over the network, and what it complained of."""

    def __init__(self, browser: Browser, *, offline: bool = False, width: int = 1280) -> None:
        self.context = browser.new_context(
            offline=offline, viewport={"width": width, "height": 900}
        )
        self.context.set_default_timeout(GUARD_MS)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type == "error" else None,
        )

    def open_file(self, path: Path) -> Page:
        """Open a file of this computer."""
        self.page.goto(path.resolve().as_uri())
        return self.page
