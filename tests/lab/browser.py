"""Debian's Chromium, headless, driven by Playwright; it is given nothing from the network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium", "open_page"]

# Chromium refuses to run as root with its sandbox; what it opens here is our own page.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; contexts and pages are the caller's.

    :raises FileNotFoundError: it is not installed.
    """
    path = shutil.which("chromium")
    if path is None:
        raise FileNotFoundError("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=60_000)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, address: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page at ``address``, and what it complained of: script errors, refused content.

    ``options`` are those of a Playwright context (``viewport``, ``color_scheme``, …).
    """
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.goto(address)
    try:
        yield page, complaints
    finally:
        context.close()
