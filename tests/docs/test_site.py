"""The site: it builds without a warning, needs no network, and its links lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class _Page(HTMLParser):
    """What a page has and refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag in {"script", "img"} and found.get("src"):
            self.loaded.append(str(found["src"]))
        if tag == "link" and "stylesheet" in (found.get("rel") or ""):
            self.loaded.append(str(found["href"]))


def test_every_page_is_on_the_site() -> None:
    """Each page of the documentation is in the table of contents, once."""
    listed = re.findall(r"^([a-z-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [path.stem for path in DOCS.glob("*.md") if path.stem != "index"]
    assert sorted(listed) == sorted(pages)


def test_pictures_are_what_the_code_draws(tmp_path: Path) -> None:
    """``docs/pictures.py`` draws the committed pictures, no more and no fewer, and each is on a page."""
    subprocess.run([sys.executable, str(DOCS / "pictures.py"), str(tmp_path)], check=True)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (DOCS / "pictures").iterdir()}
    shown = {
        Path(found).name
        for page in DOCS.glob("*.md")
        for found in re.findall(r"!\[[^\]]+\]\((pictures/[^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == set(drawn)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it, without a warning."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html"]
    done = subprocess.run([*words, str(DOCS), str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_site(site: Path) -> None:
    """Every link to a place of it leads there, and nothing is loaded from elsewhere."""
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        assert not [url for url in page.loaded if urlsplit(url).netloc], path
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.exists(), f"{path.name}: {link}"
            assert not url.fragment or target not in pages or unquote(url.fragment) in pages[target].ids, (
                f"{path}: {link}"
            )


@pytest.mark.slow
@pytest.mark.needs_chromium
@pytest.mark.parametrize(
    ("query", "pages"),
    [
        ("pageblock", {"glossary.html", "asi.html", "cost.html"}),
        ("VMSCAPE", {"attack.html", "tutorial-kvm.html"}),
        ("nosuchword", set()),
    ],
)
def test_search_works_from_a_folder(site: Path, query: str, pages: set[str]) -> None:
    """A browser that opens the site from a folder, without a server or a network, finds the pages with a word."""
    program = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [*words, f"{(site / 'search.html').as_uri()}?q={query}"], capture_output=True, text=True, check=True
    )
    assert "Search finished" in done.stdout or "did not match any documents" in done.stdout
    hits = {link.partition("#")[0] for link in re.findall(r'<li class="kind-\w+"><a href="([^"?]+)', done.stdout)}
    assert hits >= pages
    assert bool(hits) is bool(pages)
