"""Measure how thin the package is, and hold it to that: `python -m tools.house`.

Prints lines and files, what an import loads, modules that are too small or too large, and public names
that nobody uses outside their module. Exit status 1 where a bound of `BOUNDS` is passed. The floors and
that there is no circle of imports are import-linter's business (`lint-imports`, see pyproject.toml).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.places import NOTEBOOKS, ROOT

#: By the measure's name (see `measures`): what may not be passed, and what is aimed at. Where the two differ,
#: the package is on its way: a bound is what was measured last, lowered when it has become smaller, raised
#: only with a capability that is worth its lines.
BOUNDS = {
    "lines of r2l": (25_803, 18_000),
    "files of r2l": (117, 110),
    "lines of tests": (19_372, 14_000),
    "modules loaded by import r2l": (2, 2),
    "modules loaded by import r2l.isp": (14, 15),
    "modules loaded by import r2l.drift": (15, 60),
    "modules under 60 lines": (0, 0),
    "modules over 350 lines": (0, 0),
    "public names that only their own module uses": (0, 0),
}
SMALLEST, LARGEST = 60, 350
# Small by nature: they say what a package has, or start a program.
_SMALL = {"__init__.py", "__main__.py"}


def lines(path: Path) -> int:
    """Return how many lines a file has, blank ones and comments too."""
    return len(path.read_text("utf-8").splitlines())


def loaded(*packages: str) -> list[int]:
    """Return how many modules of r2l a fresh Python has after the import of each, one after the other."""
    code = (
        "import sys\nfor name in sys.argv[1:]:\n    __import__(name)\n"
        "    print(sum(m.partition('.')[0] == 'r2l' for m in sys.modules))"
    )
    command = [sys.executable, "-c", code, *packages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names without underscore that a module defines and that others ought to use.

    Left out is what users meet without naming it: commands, which a decorator registers, errors, and the
    classes of what public functions return and of what public classes hold.
    """
    met = _met(tree)
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef):
            names = [] if any(isinstance(d, ast.Call) for d in node.decorator_list) else [node.name]
        elif isinstance(node, ast.ClassDef):
            names = [] if node.name.endswith("Error") or node.name in met else [node.name]
        elif isinstance(node, ast.Assign):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


def _met(tree: ast.Module) -> set[str]:
    """Return the names in what public functions and methods return and in the fields of public classes."""
    met: set[str] = set()
    public = [n for n in tree.body if not getattr(n, "name", "_").startswith("_")]
    for node in (n for top in public for n in ast.walk(top)):
        hint = None
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            hint = node.returns
        elif isinstance(node, ast.AnnAssign):
            hint = node.annotation
        if hint is not None:
            met |= {n.id for n in ast.walk(hint) if isinstance(n, ast.Name)}
    return met


def mentioned(tree: ast.Module) -> set[str]:
    """Return the names that a piece of code mentions: variables, attributes, imports, short strings."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.add(node.name.rsplit(".", 1)[-1])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # What is reached by getattr, or named in a table of lazy imports, as "module:name" too.
            names.add(node.value.rpartition(":")[2])
    return names


def notebook_code(path: Path) -> ast.Module:
    """Return the code cells of a notebook, without magics, as one tree."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    sources = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    code = "\n".join(sources).splitlines()
    return ast.parse("\n".join(line for line in code if not line.lstrip().startswith(("%", "!"))))


def unused_names(package: list[Path]) -> list[str]:
    """Return "module.name" for each public name that neither another module nor a lesson mentions."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in package}
    uses = {path: mentioned(tree) for path, tree in trees.items()}
    beside = [p for folder in ("benchmarks", "tools", "docs") for p in (ROOT / folder).glob("*.py")]
    outside = set().union(
        *(mentioned(ast.parse(p.read_text("utf-8"))) for p in beside if "test_" not in p.name),
        *(mentioned(notebook_code(p)) for p in NOTEBOOKS.glob("[0-9]*.ipynb")),
    )
    unused = []
    for path, tree in trees.items():
        if path.name in _SMALL:
            continue
        elsewhere = outside.union(*(names for other, names in uses.items() if other != path))
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        unused += [f"{module}.{name}" for name in public_names(tree) if name not in elsewhere]
    return unused


def measures() -> dict[str, int | list[str]]:
    """Return each measure: a number, or the list of what is wrong."""
    nested = "r2l", "r2l.isp", "r2l.drift"  # each imports the one before
    package = sorted((ROOT / "r2l").rglob("*.py"))
    modules = {p.relative_to(ROOT): lines(p) for p in package if p.name not in _SMALL}
    return {
        "lines of r2l": sum(map(lines, package)),
        "files of r2l": len(package),
        "lines of tests": sum(map(lines, (ROOT / "tests").rglob("*.py"))),
        **{
            f"modules loaded by import {package}": n
            for package, n in zip(nested, loaded(*nested), strict=True)
        },
        "modules under 60 lines": [f"{p} {n}" for p, n in modules.items() if n < SMALLEST],
        "modules over 350 lines": [f"{p} {n}" for p, n in modules.items() if n > LARGEST],
        "public names that only their own module uses": unused_names(package),
    }


def main() -> None:
    """Print the measures; exit with 1 if a bound is passed."""
    passed = False
    for name, measure in measures().items():
        number = measure if isinstance(measure, int) else len(measure)
        bound, aim = BOUNDS[name]
        passed |= number > bound
        state = "PASSED" if number > bound else "" if number <= aim else f"aimed at: {aim}"
        print(f"{name:45s} {number:7d}  at most {bound:5d}  {state}")
        if not isinstance(measure, int):
            print(*(f"    {line}" for line in measure), sep="\n", end="\n" if measure else "")
    sys.exit(int(passed))


if __name__ == "__main__":
    main()
