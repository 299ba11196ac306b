"""Open the inspection page in Debian's chromium, driven by Playwright; collect what its console prints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from .browser import CHROMIUM

# where the pictures of the page are kept: artifacts of CI
SCREENSHOTS = Path(os.environ.get("PPL_SCREENSHOTS") or Path(tempfile.gettempdir()) / "ppl-page")

DOCS = Path(__file__).resolve().parents[2] / "docs"
IN_README = ("job", "estimate-hidden", "boxes")


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A tab of the page at one address.

    Attributes:
        console: what it printed, and what went wrong in scripts.
        pages: what it opened, to be judged at the end.
    """

    def __init__(self, browser: Browser, url: str, width: int = 1280, theme: Any = "light") -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce", accept_downloads=True
        )
        context.set_default_timeout(150_000)  # other tests use the cores, too
        self.page: Page = context.new_page()
        self.url = url
        self.console: list[str] = []
        self.page.on(
            "console",
            lambda message: self.console.append(
                f"{message.type}: {message.text} {message.location.get('url', '')}".strip()
            ),
        )
        self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))

    def open(self, view: str) -> Page:
        """Open a view and wait until it is whole."""
        self.page.goto(f"{self.url}/{view}")
        self.page.wait_for_selector(".view[data-ready]")
        return self.page

    def check(self, name: str = "") -> None:
        """Check what each view must hold.

        The console is empty, no value of a script stands in the text, nothing is cut off at the right and axe finds
        no serious fault.
        """
        assert not self.console, self.console
        lines = {line.strip() for line in self.page.locator("main").inner_text().splitlines()}
        leaked = lines & {"false", "true", "null", "undefined", "NaN", "[object Object]"}
        assert not leaked, f"values of the script stand in the text: {leaked}"
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"], "the page is wider than the window"  # type: ignore[index]
        faults = [
            (fault["impact"], fault["id"], [node["html"] for node in fault["nodes"]])
            for fault in Axe().run(self.page).response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert not faults, faults
        if name:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
            if os.environ.get("PPL_WRITE_DOCS") and name in IN_README:
                self.page.screenshot(path=DOCS / f"page-{name}.jpg", type="jpeg", quality=82)

    def close(self) -> None:
        self.page.context.close()
