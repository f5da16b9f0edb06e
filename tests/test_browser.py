"""The notebooks in a real browser: JupyterLab and Voila in Chromium, at tiny parameters.

A callback that raises is noticed by nobody but the person who moves the slider; so a person's steps
are made here: open the page, run it, move a slider, choose a cell, and see whether the picture
changes. Screenshots are kept in runs/screenshots, or where R2L_SCREENSHOTS says.
"""

import base64
import io
import json
import os
import re
import statistics
import time
from pathlib import Path

import numpy as np
import papermill
import pytest
from PIL import Image

from r2l.sweep import read_sweep
from tests import browser as web
from tools.places import EXPERIMENTS, NOTEBOOKS, ROOT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("kernels"),
    pytest.mark.skipif(web.CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.timeout(600),
]
TINY = {
    job.notebook.stem: job
    for path in sorted(EXPERIMENTS.glob("tiny_*.yaml"))
    for job in read_sweep(path).jobs
}
# The one that JupyterLab opens, and by what its explorer is known; the others Voila shows.
IN_LAB = {"02": ".r2l-processing-explorer", "03": ".r2l-matrix-explorer"}
NARROW = {"width": 800, "height": 1000}
EXPLORER = "[class*='r2l-'][class*='-explorer']"
# The last is what an explorer writes below its picture when drawing raised.
WRONG = re.compile(
    r"Traceback \(most recent call last\)|Error displaying widget|Error rendering|^\w+Error: .+", re.MULTILINE
)


def code(stem: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


WITH_EXPLORER = [s for s in TINY if "explorer(" in code(s)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder of the notebooks with tiny parameters put in, not yet run."""
    folder = tmp_path_factory.mktemp("pages")
    for stem, tiny in TINY.items():
        out = str(folder / f"{stem}.ipynb")
        values = {**tiny.parameters}
        if "OUTPUT" in papermill.inspect_notebook(str(tiny.notebook)):
            values["OUTPUT"] = str(folder / stem)
        papermill.execute_notebook(str(tiny.notebook), out, parameters=values, prepare_only=True)
    return folder


@pytest.fixture(scope="module")
def chromium():
    with web.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(pages, tmp_path_factory):
    with web.lab(pages, tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture(scope="module")
def voila(pages, tmp_path_factory):
    with web.voila(pages, tmp_path_factory.mktemp("voila")) as address:
        yield address


@pytest.fixture
def page(chromium):
    """A page that fails the test if its own code raised."""
    # One context for all pages: what they have in common is fetched and compiled once.
    kept = chromium.contexts or [chromium.new_context(viewport={"width": 1280, "height": 1000})]
    page = kept[0].new_page()
    page.set_default_timeout(240_000)
    raised = []
    page.on("pageerror", lambda error: raised.append(str(error)))
    yield page
    page.close()
    assert not raised, raised


@pytest.fixture(scope="session")
def screenshots():
    folder = Path(os.environ.get("R2L_SCREENSHOTS", ROOT / "runs" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_in_lab(page, address: str, stem: str) -> None:
    # A workspace of its own: in a common one JupyterLab opens the other notebooks again as well.
    page.goto(f"{address}/lab/workspaces/{stem}/tree/{stem}.ipynb")
    page.wait_for_function(web.IS_OPEN, arg=f"{stem}.ipynb")
    page.evaluate(web.RUN_ALL)
    assert_whole(page)


def open_in_voila(page, address: str, stem: str) -> None:
    page.add_init_script(web.STILL)
    page.goto(f"{address}/voila/render/{stem}.ipynb", wait_until="domcontentloaded")
    page.wait_for_selector(f"{EXPLORER} img", state="visible")
    assert page.locator(".jp-InputArea-editor:visible").count() == 0, "a page without code"
    assert_whole(page)


def assert_whole(page) -> None:
    wrong = WRONG.search(text := page.inner_text("body"))
    assert not wrong, text[wrong.start() :][:1500]


def watch(explorer) -> None:
    explorer.evaluate(web.WATCH_PICTURES)


def settle(page, quiet: float = 0.15, at_most: float = 20.0) -> float:
    """Wait until a picture came and no more come; return seconds from the key to the last one."""
    end = time.monotonic() + at_most
    while time.monotonic() < end:
        waited = page.evaluate(
            "() => [r2lShown.at(-1) - r2lPressed.at(-1), performance.now() - r2lShown.at(-1)]"
        )
        if all(w is not None for w in waited) and waited[0] > 0 and waited[1] > quiet * 1000:
            return waited[0] / 1000
        time.sleep(0.02)
    raise AssertionError(f"no new picture within {at_most} s")


def pixels(explorer) -> list[np.ndarray]:
    """The explorer's pictures, all of one moment: an element may be replaced at any time."""
    files = [base64.b64decode(text) for text in explorer.evaluate(web.PICTURES)]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


def differ(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    """Whether another picture is seen: a step of a slider may be worth a few levels of 255."""
    if [b.shape for b in before] != [a.shape for a in after]:
        return True
    return any(np.abs(b.astype(int) - a).max() > 1 for b, a in zip(before, after, strict=True))


def step(handle) -> tuple[str, str]:
    """The key that moves a slider into its range, and the one that moves it back."""
    now, low, high = (float(handle.get_attribute(f"aria-value{k}")) for k in ("now", "min", "max"))
    keys = ("ArrowRight", "ArrowLeft")
    return keys if now - low < high - now else keys[::-1]


def move(page, handle, key: str, times: int, quiet: float = 0.15) -> list[float]:
    """Press a key on a slider up to its end, each time waiting for the picture; return the seconds."""
    handle.focus()
    end = "aria-valuemax" if key == "ArrowRight" else "aria-valuemin"
    waited = []
    for _ in range(times):
        if handle.get_attribute("aria-valuenow") == handle.get_attribute(end):
            break
        page.keyboard.press(key)
        waited.append(settle(page, quiet))
    return waited


def choose(page, explorer) -> None:
    """Press the last cell of a matrix, or choose another entry of the first menu that has several."""
    cells = explorer.locator(".r2l-matrix-cell:visible")
    if cells.count():
        cells.last.press("Enter")
        return
    menus = explorer.locator("select").all()
    menu = next(m for m in menus if m.locator("option").count() > 1)
    chosen = menu.evaluate("menu => menu.selectedIndex")
    menu.select_option(index=0 if chosen else 1)


def change_something(page, explorer) -> None:
    """Move the first slider by a few steps; where there is none, or nothing depends on it, choose something.

    What the sensor recorded, which the lab's explorer begins with, is the same in every epoch.
    """
    before = pixels(explorer)
    handles = explorer.locator(".noUi-handle:visible")
    if handles.count():
        move(page, handles.first, step(handles.first)[0], 3, quiet=0.5)
    if not handles.count() or not differ(before, pixels(explorer)):
        page.evaluate("r2lPressed.push(performance.now())")
        choose(page, explorer)
        settle(page, quiet=0.5)


def answers(page, explorer) -> None:
    """Change something, by mouse or keys, and see another picture."""
    explorer.scroll_into_view_if_needed()
    watch(explorer)
    before = pixels(explorer)
    change_something(page, explorer)
    assert differ(before, pixels(explorer)), "the picture is another one"


def narrow_and_readable(page, explorer) -> None:
    """See that in a narrow window all controls are there and all text can be read."""
    page.set_viewport_size(NARROW)
    page.wait_for_timeout(500)
    assert not (faults := explorer.evaluate(web.FAULTS)), faults


def whole_page(page, path: Path) -> None:
    """A screenshot of all that could be scrolled to, up to 12,000 pixels."""
    high = page.evaluate(
        "Math.max(...[...document.querySelectorAll('body, body *')].map(e => e.scrollHeight))"
    )
    page.set_viewport_size({"width": 1280, "height": min(high + 40, 12_000)})
    page.wait_for_timeout(300)
    page.screenshot(path=path)


@pytest.mark.parametrize("stem", [s for s in TINY if s[:2] in IN_LAB])
def test_lab_runs_the_notebook_and_its_explorer_answers(page, lab, screenshots, stem):
    open_in_lab(page, lab, stem)
    explorer = page.locator(IN_LAB[stem[:2]]).first
    page.screenshot(path=screenshots / f"lab_{stem}_before.png")
    answers(page, explorer)
    page.screenshot(path=screenshots / f"lab_{stem}_after.png")
    narrow_and_readable(page, explorer)
    page.evaluate(web.DARK)
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    narrow_and_readable(page, explorer)
    # All cells once more; before it, in the third notebook, another kernel, which knows none of the widgets.
    if stem.startswith("03"):
        page.evaluate(web.RESTART)
    page.evaluate(web.RUN_ALL)
    assert_whole(page)
    answers(page, explorer)
    page.screenshot(path=screenshots / f"lab_{stem}_narrow.png")
    assert_whole(page)


def test_the_next_visitor_waits_at_a_page_and_comes_in_when_the_first_leaves(chromium, pages, tmp_path):
    lesson = next(s for s in WITH_EXPLORER if s.startswith("02"))
    with web.explorer(pages / f"{lesson}.ipynb", 1, tmp_path) as address:
        first, second = (chromium.new_page() for _ in "12")
        first.goto(address, wait_until="domcontentloaded", timeout=120_000)
        first.wait_for_selector(f"{EXPLORER} img", timeout=120_000)
        assert second.goto(address).status == 503
        assert "There is room for 1, and somebody else is" in second.inner_text("body")
        first.goto("about:blank")
        # It looks again by itself.
        second.wait_for_selector(f"{EXPLORER} img", timeout=180_000)
        assert second.title().endswith("r2l")
        for page in (first, second):
            page.close()


def follows(page, explorer, stem, capsys) -> None:
    """See that a slider is followed at once and to its end."""
    watch(explorer)
    handle = explorer.locator(".noUi-handle:visible").first
    key, back = step(handle)
    waited = move(page, handle, key, 15)

    # Held down, a key repeats faster than pictures come: none may queue, the last one must come.
    shown = page.evaluate("r2lShown.length")
    for _ in range(15):
        page.keyboard.press(back)
    late = settle(page, quiet=1.0)
    shown = page.evaluate("r2lShown.length") - shown
    last = pixels(explorer)
    move(page, handle, key, 1, quiet=1.0)
    assert differ(last, pixels(explorer))
    move(page, handle, back, 1, quiet=1.0)
    assert not differ(last, pixels(explorer)), "what is shown is where the slider stands"

    median = statistics.median(waited)
    with capsys.disabled():
        print(
            f"\n{stem}: key to picture {median * 1000:.0f} ms (median of {len(waited)}, longest "
            f"{max(waited) * 1000:.0f}); 15 keys at once: {shown} pictures, last after "
            f"{late * 1000:.0f} ms"
        )
    assert median < 1.0
    assert late < 2.0


@pytest.mark.parametrize("stem", WITH_EXPLORER)
def test_every_explorer_answers_on_a_page_without_code(page, voila, screenshots, stem, capsys):
    open_in_voila(page, voila, stem)
    explorers = page.locator(EXPLORER)
    for i in range(explorers.count()):
        explorer = explorers.nth(i)
        explorer.screenshot(path=screenshots / f"voila_{stem}_{i}_before.png")
        answers(page, explorer)
        explorer.screenshot(path=screenshots / f"voila_{stem}_{i}_after.png")
    assert_whole(page)
    if stem.startswith("02"):
        follows(page, explorers.first, stem, capsys)
    for i in range(explorers.count()):
        narrow_and_readable(page, explorers.nth(i))
        explorers.nth(i).screenshot(path=screenshots / f"voila_{stem}_{i}_narrow.png")
    whole_page(page, screenshots / f"voila_{stem}.png")
