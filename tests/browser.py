"""A headless Chromium for the tests of the pages: what they log, what they ask of a network, what axe-core finds in them."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SERIOUS = ("serious", "critical")


def chromium() -> str | None:
    """The browser of this machine, if it has one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Opened:
    """A page from disk: ``page`` is playwright's; ``faults`` it logged, ``requests`` for anything but itself."""

    page: Any
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def serious(self) -> list[str]:
        """What axe-core finds that is serious or critical: rule, and the first element it is about."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in SERIOUS]

    def scrolls_sideways(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


class Browser:
    """Opens files as pages of a size and a colour scheme."""

    def __init__(self, started: Any) -> None:
        self._started = started

    @contextlib.contextmanager
    def open(self, path: Path, width: int = 1280, scheme: str = "light", height: int = 900) -> Iterator[Opened]:
        context = self._started.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        try:
            page = context.new_page()
            opened = Opened(page)
            address = path.resolve().as_uri()

            def log(message: Any) -> None:
                if message.type in ("error", "warning"):
                    opened.faults.append(message.text)

            def ask(request: Any) -> None:
                if request.url.partition("#")[0] != address and not request.url.startswith(("data:", "blob:")):
                    opened.requests.append(request.url)

            page.on("console", log)
            page.on("pageerror", lambda error: opened.faults.append(str(error)))
            page.on("request", ask)
            page.goto(address)
            yield opened
        finally:
            context.close()


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A browser that is running, closed in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield Browser(running)
        finally:
            running.close()
