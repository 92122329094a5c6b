"""A headless browser for tests of pages; without one the test is skipped with the reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from scripts import doc_images


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a Playwright browser; skip the test with the reason if there is none."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if doc_images.find_browser() is None:
        names = ", ".join(doc_images.BROWSERS)
        pytest.skip(f"no browser: none of {names} is installed (Debian: apt-get install chromium)")
    with doc_images.browser() as browser:
        yield browser


def watch(page: Any) -> tuple[list[str], set[str]]:
    """Return two collections that fill with the page's script errors and the hosts that it contacts."""
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url[:4] == "http" else None)
    return errors, hosts
