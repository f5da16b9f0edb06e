"""For a room: slides without a network, sliders for so many visitors, the bundle's commands."""

import re
import subprocess
import sys
from unittest.mock import Mock

import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup
from tornado.web import Finish

from tests import browser as web
from tools.explorer import door, sliders, why_full
from tools.places import NOTEBOOKS, ROOT

LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


@pytest.mark.slow
def test_slides_need_nothing_from_elsewhere_and_show_every_section(tmp_path):
    pytest.importorskip("sphinx_revealjs", reason="the extra docs")
    command = [sys.executable, "-m", "tools.slides", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for lesson in LESSONS:
        soup = BeautifulSoup((tmp_path / f"{lesson.stem}.html").read_text("utf-8"), "html.parser")
        for element in soup.select("script[src], link[href], img[src]"):
            target = element.get("src") or element["href"]
            assert target.startswith("data:") or (tmp_path / target).is_file(), target[:80]
        code = "".join(s.get_text() for s in soup.find_all(["script", "style"]))
        assert not re.search(r"(?:from|import|url\()\s*['\"]?https?:", code)
        shown = {h.get_text().rstrip("¶") for h in soup.select(".slides h1, .slides h2")}
        prose = [c.source for c in nbformat.read(lesson, 4).cells if c.cell_type == "markdown"]
        sections = set(re.findall(r"^##? (.+?)\s*$", "\n".join(prose), re.MULTILINE))
        assert len(shown) == len(sections - {"What you need", "Parameters", "Try it"})
        assert soup.select(".slides img[alt]")
        assert "google.colab" not in soup.select_one(".slides").get_text()
    assert "@import url(http" not in (tmp_path / "reveal.js/dist/theme/white.css").read_text("utf-8")
    if web.CHROMIUM is not None:
        assert not (cut := cut_slides(tmp_path)), cut


def cut_slides(folder) -> list[str]:
    """Return which slides hold more than a screen of 1280 x 720 shows."""
    cut = []
    with web.chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        for lesson in LESSONS:
            page.goto((folder / f"{lesson.stem}.html").as_uri())
            page.wait_for_function("window.Reveal?.isReady()")
            page.evaluate("Reveal.configure({transition: 'none'})")
            slides = page.evaluate("Reveal.getTotalSlides()")
            assert slides > 5
            for number in range(slides):
                high = page.evaluate(
                    "(s => Math.max(s.scrollHeight - s.clientHeight, s.getBoundingClientRect().bottom - 720))"
                    "(Reveal.getCurrentSlide())"
                )
                cut += [f"{lesson.stem}, slide {number}: {high} px"] if high > 1 else []
                page.evaluate("Reveal.next()")
    return cut


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_the_first_screen_is_the_sliders(lesson):
    page = sliders(nbformat.read(lesson, as_version=4))
    nbformat.validate(page)
    first, *unseen, explorer, _ = page.cells
    assert first.source.startswith("# ")
    assert "explorer(" in explorer.source
    assert all(c.cell_type == "code" and c.source.startswith("%%capture") for c in unseen)
    with pytest.raises(ValueError, match="no explorer"):
        sliders(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]))


def test_the_room_is_full_by_visitors_and_by_memory():
    assert why_full(2, 3, 8e9) is None
    assert "room for 3" in why_full(3, 3, 8e9)
    assert "memory" in why_full(0, 3, 1e9)


def test_who_comes_too_many_reads_so_before_a_kernel_starts():
    request = Mock()
    request.kernel_manager.list_kernel_ids.return_value = ["one"]
    lesson = nbformat.read(LESSONS[0], as_version=4)
    with pytest.raises(Finish):
        door(1)(request, lesson, ".")
    request.set_status.assert_called_once_with(503)
    assert "room for 1" in request.finish.call_args[0][0]
    request.kernel_manager.list_kernel_ids.return_value = []
    if psutil.virtual_memory().available > 2e9:
        assert door(1)(request, lesson, ".").metadata["title"].endswith("r2l")


def test_the_bundle_holds_what_its_installer_asks_for():
    make = subprocess.run(["make", "-n", "bundle"], cwd=ROOT, capture_output=True, text=True)
    assert "pip wheel" in make.stdout, make.stderr
    assert "tools/room/" in make.stdout
    for name in ("install.sh", "install.ps1"):
        text = (ROOT / "tools" / "room" / name).read_text("utf-8")
        (extras,) = set(re.findall(r"r2l(\[[a-z,]+\])", text))
        assert f".{extras}" in make.stdout
        assert "--no-index --find-links wheels" in text
    assert subprocess.run(["sh", "-n", ROOT / "tools/room/install.sh"]).returncode == 0
