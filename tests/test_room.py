"""For a room: slides without a network, sliders for so many visitors, the bundle's commands."""

import re
import shutil
import subprocess
import sys
import time

import nbformat
import pytest
from bs4 import BeautifulSoup

from tests import browser as web
from tools.explorer import sliders, why_full
from tools.places import NOTEBOOKS, ROOT

SLIDERS = "[class*='r2l-'][class*='-explorer'] img"
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
    theme = (tmp_path / "reveal.js/dist/theme/white.css").read_text("utf-8")
    assert "@import url(http" not in theme


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


@pytest.mark.browser
@pytest.mark.skipif(web.CHROMIUM is None, reason="no Chromium")
def test_who_comes_too_many_waits_and_is_let_in(tmp_path):
    address = f"http://127.0.0.1:{(port := web.free_port())}"
    options = ["01_raw_data", "--port", str(port), "--visitors", "1"]
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, "-m", "tools.explorer", *options]
    server = subprocess.Popen(
        command, cwd=ROOT, env=web.environment(tmp_path), stdout=log, stderr=log
    )
    try:
        web.wait_for(f"{address}/voila/static/voila.js", server, tmp_path / "log")
        with web.chromium() as browser:
            page, late = browser.new_page(), browser.new_page()
            assert page.goto(address, wait_until="commit").status == 200
            page.wait_for_selector(SLIDERS, timeout=120_000)
            assert "r2l" in page.title()
            answer = late.goto(address)
            assert (answer.status, answer.headers["retry-after"]) == (503, "20")
            assert "room for 1" in late.inner_text("body")
            page.close(run_before_unload=True)
            end = time.monotonic() + 60
            while (status := late.goto(address, wait_until="commit").status) != 200:
                assert time.monotonic() < end, status
                time.sleep(1)
            late.wait_for_selector(SLIDERS, timeout=120_000)
    finally:
        server.terminate()
        server.wait(20)


def test_the_bundle_holds_what_its_installer_asks_for():
    make = subprocess.run(["make", "-n", "bundle"], cwd=ROOT, capture_output=True, text=True)
    assert "pip wheel" in make.stdout, make.stderr
    assert "tools/room/" in make.stdout
    for name in ("install.sh", "install.ps1"):
        text = (ROOT / "tools" / "room" / name).read_text("utf-8")
        (extras,) = set(re.findall(r"r2l(\[[a-z,]+\])", text))
        assert f".{extras}" in make.stdout
        assert "--no-index --find-links wheels" in text
    shell = shutil.which("sh")
    assert subprocess.run([shell, "-n", ROOT / "tools/room/install.sh"]).returncode == 0
