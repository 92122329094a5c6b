"""A headless browser for tests of pages: Debian's chromium, or any other that is installed, through Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# No sandbox: root has none in a container. The rest keeps the browser from the network and from a GPU.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-default-apps", "--disable-sync", "--no-first-run")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_browser() -> Iterator:
    """Give a Playwright browser; skip the test, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def watch(page) -> tuple[list[str], set[str]]:
    """Return what will hold the page's script errors, and the hosts that it asks."""
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url[:4] == "http" else None)
    return errors, hosts
