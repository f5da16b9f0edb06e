"""Write the index of the notebooks into notebooks/README.md: `python -m tools.index`.

What it says stands in the notebooks: the title, the promise in bold below it, and the first
paragraph of *What you need* ("About two minutes on two cores, 1.5 GB of memory ...").
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from r2l.sweep import read_sweep
from tools.places import EXPERIMENTS, NOTEBOOKS

README = NOTEBOOKS / "README.md"
BEGIN, END = "<!-- index:begin -->", "<!-- index:end -->"
WORDS = ("half a", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(i) if i else "0.5" for i, word in enumerate(WORDS)} | {"a": "1"}


def prose(path: Path) -> str:
    """Return the text of a notebook's markdown cells."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    texts = ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return "\n\n".join(texts)


def find(pattern: str, text: str, path: Path, what: str) -> re.Match[str]:
    """Return the first match, or say what the notebook lacks.

    Raises:
        ValueError: there is none.
    """
    found = re.search(pattern, text, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise ValueError(f"{path.name}: {what}")
    return found


def needs(path: Path, text: str) -> tuple[str, str]:
    """Return the minutes and the MB that *What you need* promises, as text."""
    section = find(r"^## What you need\n+(.+)", text, path, "no section 'What you need'")[1]
    words = "|".join(sorted(NUMBERS, key=len, reverse=True))
    ask = "'What you need' begins with 'About two minutes on two cores, 1.5 GB of memory'"
    time = find(rf"\b(\d+(?:\.\d+)?|{words}) (minute|second)s?\b", section, path, ask)
    memory = find(r"\b(\d+(?:[.,]\d+)?) ?(MB|GB)\b", section, path, ask)
    number = float(NUMBERS.get(time[1].lower(), time[1]))
    minutes = number / 60 if time[2].lower() == "second" else number
    mb = float(memory[1].replace(",", ".")) * (1000 if memory[2].upper() == "GB" else 1)
    return f"{minutes:.2g}", f"{mb:.0f}"


def row(path: Path) -> str:
    """Return a notebook's line of the table."""
    text = prose(path)
    title = find(r"^# (.+)$", text, path, "no title")[1].strip()
    promise = find(r"^\*\*(.+?)\*\*$", text, path, "no promise in bold below the title")[1]
    minutes, mb = needs(path, text)
    return f"| [{title}]({path.name}) | {promise} | {minutes} | {mb} |"


def experiment_lines() -> list[str]:
    """Return a line for each parameter file that is worth a person's time."""
    files = [f for f in sorted(EXPERIMENTS.glob("*.yaml")) if not f.stem.startswith("tiny_")]
    return [
        f"- [`{sweep.name}`](experiments/{sweep.name}.yaml), of {sweep.jobs[0].notebook.name[:2]}: "
        f"{sweep.about}"
        for sweep in map(read_sweep, files)
    ]


def index() -> str:
    """Return the index as Markdown."""
    table = [
        "| notebook | promise | minutes | MB |",
        "| --- | --- | ---: | ---: |",
        *map(row, sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))),
    ]
    return "\n".join([*table, "", "Larger experiments, as parameter files:", "", *experiment_lines()])


def with_index(text: str, new: str) -> str:
    """Return ``text`` with what stands between the two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{README}: the marks {BEGIN} and {END} are expected once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Bring the README's index up to date."""
    README.write_text(with_index(README.read_text("utf-8"), index()), "utf-8")


if __name__ == "__main__":
    main()
