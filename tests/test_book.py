"""The book, built by `make book` from committed files: executed notebooks, and links without dead ends."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from workplace import ROOT, clean_environment, copy_tree, run_program

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    clone = copy_tree(tmp_path_factory.mktemp("book") / "clone")
    (clone / ".venv").symlink_to(ROOT / ".venv")
    run_program("make", "--assume-old=.venv/installed", "book", cwd=clone, env=clean_environment())
    return clone / "docs" / "site"


def test_every_link_resolves(site):
    """Each link, image and script of a page is a file of the site, and each fragment is an id of its page."""
    pages = {path.resolve(): BeautifulSoup(path.read_bytes(), "html.parser") for path in site.rglob("*.html")}
    broken = []
    for page, soup in pages.items():
        for element in soup.select("a[href], link[href], img[src], script[src]"):
            address = element.get("href") or element["src"]
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:  # external
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.is_file() or (parts.fragment and file in pages and not pages[file].find(id=parts.fragment)):
                broken.append(f"{page}: {address}")
    assert broken == []
    assert len(pages) > 50


@pytest.mark.parametrize("page", ["2_tracking/compare_runs", "3_projects/reproduce", "4_pipeline/compare"])
def test_notebooks_have_been_executed(site, page):
    """The outputs of cells are in the page."""
    assert BeautifulSoup((site / f"{page}.html").read_bytes(), "html.parser").select(".cell_output")
