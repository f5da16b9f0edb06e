"""The site: built as `make site` does, then looked through page by page for what leads nowhere."""

import contextlib
import gc
import re
import sys
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from typer.main import get_command

import r2l
from r2l.cli import app
from tests import browser as web
from tests.conftest import run_apart
from tools.places import NOTEBOOKS, ROOT

LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
pytest.importorskip("myst_nb", reason="the extra docs")


def build(out: Path) -> None:
    from sphinx.cmd.build import build_main

    warnings.simplefilter("ignore")  # not those of Sphinx, which counts its own
    gc.disable()  # of trees that all stay, nothing can be collected
    options = ["-n", "-W", "--keep-going", "-q", "-b", "html", "-c", "docs", "-d", f"{out}/trees"]
    sys.exit(build_main([*options, ".", f"{out}/html"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, BeautifulSoup]:
    out = tmp_path_factory.mktemp("site")
    with contextlib.chdir(ROOT):
        assert run_apart(build, out) == 0, "what is wrong was written to stderr"
    pages = [p for p in (out / "html").rglob("*.html") if "_static" not in p.parts]
    texts = {p: re.sub(r"base64,[\w+/=]+", "base64,", p.read_text("utf-8")) for p in pages}
    return {p: BeautifulSoup(text, "html.parser") for p, text in texts.items()}


def page(site: dict[Path, BeautifulSoup], name: str) -> BeautifulSoup:
    (found,) = (soup for path, soup in site.items() if path.as_posix().endswith(f"/html/{name}"))
    return found


@pytest.mark.slow
def test_every_link_and_picture_leads_somewhere(site):
    names = {path: {e["id"] for e in soup.find_all(id=True)} for path, soup in site.items()}
    lost = []
    for path, soup in site.items():
        for element in soup.find_all(["a", "img", "link", "script"]):
            target = urlsplit(element.get("href") or element.get("src") or "")
            if target.scheme or target.netloc:
                assert element.name == "a" or target.scheme == "data", f"{path}: {target.geturl()[:80]}"
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            there = file.exists() and (file.suffix != ".html" or target.fragment in {"", *names[file]})
            lost += [] if there else [f"{path.name}: {target.geturl()}"]
    assert not lost, lost


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_shows_its_figures_and_no_widget_as_text(site, lesson):
    soup = page(site, f"notebooks/{lesson.stem}.html")
    assert soup.find(class_="r2l-live"), "says where the sliders stand"
    assert "VBox(" not in soup.get_text()
    text = lesson.read_text("utf-8")
    assert len(soup.select(".cell_output img[alt]")) >= text.count("data:image/png;base64") > 0
    solutions = [c for c in soup.select(".cell") if "tag_solution" in c["class"]]
    assert all(c.find("details") for c in solutions), "folded"
    launch = {a["href"] for a in soup.find_all("a", href=True)}
    for address in ("https://mybinder.org/v2/gh/raw2logit/r2l/HEAD", "https://colab.research"):
        assert any(a.startswith(address) and lesson.name in a for a in launch)
    assert soup.select(".cell ~ p a[href*='glossary.html#term'], section > p a[href*='#term']")


@pytest.mark.slow
@pytest.mark.skipif(web.CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_on_a_phone_in_the_dark_no_page_is_wider_than_the_screen_and_all_can_be_read(site):
    with web.chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        faults = {}
        # The root only leads on.
        for path in (p for p, soup in site.items() if soup.select(".bd-article-container")):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.dataset.theme") == "dark"
            sideways = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            unread = page.locator(".bd-article-container").evaluate(web.FAULTS)
            if sideways > 0 or unread:
                faults[path.name] = sideways, unread
    assert not faults, faults


@pytest.mark.slow
def test_the_references_are_whole(site):
    documented = {e["id"].rpartition(".")[2] for s in site.values() for e in s.select("dt.sig[id]")}
    names = {n for n in r2l.__all__ if not n.isupper()}  # classes and functions, not constants
    assert names <= documented
    commands = page(site, "docs/_generated/cli.html").get_text()
    for name in get_command(app).commands:
        assert f"r2l {name}" in commands
