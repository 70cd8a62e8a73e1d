"""A browser that opens pages, and says so if one asks for anything else or fails."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from playwright.sync_api import Browser, Page, ViewportSize

_LOOKS = Path(__file__).parent / "looks"
_KEEP = "ASIKIT_KEEP_LOOKS"
"""Set to keep what pages look like now, as what they are to look like."""
_SMALLER, _MEAN, _OTHER, _SHARE = 8, 4.0, 48, 0.04

WIDE: ViewportSize = {"width": 1100, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}


Scheme: TypeAlias = Literal["light", "dark"]


class Opens(Protocol):
    """Opens a file as a user does."""

    def __call__(
        self, path: Path, *, scheme: Scheme = "light", size: ViewportSize = WIDE, trusted: bool = False
    ) -> AbstractContextManager[Page]:
        """Give the page while it is open; after that nothing may have gone wrong.

        :param trusted: Let the test add to the page, which the page's own policy forbids.
        """


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium once; a sandbox is not to be had by root."""
    program = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Opens:
    """Give what opens a page without a network."""

    @contextmanager
    def opens(
        path: Path, *, scheme: Scheme = "light", size: ViewportSize = WIDE, trusted: bool = False
    ) -> Iterator[Page]:
        context = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=trusted, offline=True)
        page = context.new_page()
        asked: list[str] = []
        wrong: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(path.as_uri())
        yield page
        context.close()
        assert asked == [path.as_uri()]
        assert wrong == []

    return opens


@pytest.fixture
def looks_like() -> Callable[[bytes, str], None]:
    """Give what compares a screenshot with the one that is kept, both made so small that letters are grey.

    Fonts differ from one release to the next; a picture that is gone, a colour or a layout that is another one, do not
    pass.
    """

    def compare(screenshot: bytes, name: str) -> None:
        seen = Image.open(BytesIO(screenshot)).convert("RGB")
        small = seen.resize((seen.width // _SMALLER, seen.height // _SMALLER), Image.Resampling.BOX)
        path = _LOOKS / f"{name}.png"
        if os.environ.get(_KEEP):
            small.save(path, optimize=True)
        known = Image.open(path).convert("RGB")
        assert small.size == known.size
        apart = np.abs(np.asarray(small, np.int16) - np.asarray(known, np.int16))
        assert apart.mean() < _MEAN
        assert (apart.max(axis=2) > _OTHER).mean() < _SHARE

    return compare
