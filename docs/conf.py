"""The site: these pages, the lessons with their committed outputs, the command line, the docstrings.

`make site` builds it into build/site, without a network and without running a notebook. The project's root
is the source folder, so that the links between README, docs/ and notebooks/ are those that GitHub follows.
"""

import json
import re
import warnings
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parents[1]
project, author = "r2l", "The r2l authors"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "notebooks/*.ipynb", "notebooks/README.md"]
exclude_patterns = [".*", "**/.*", "data", "runs", "build", "solutions", "r2l", "tests", "tools"]
exclude_patterns += ["experiments", "notebooks/[a-z]*/**", "benchmarks", "docs/_static/**", "mlruns"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky, smartquotes = True, False
# Types and names within docstrings are plain words: no inventory of others is fetched.
nitpick_ignore_regex = [("py:.*", ".*")]
suppress_warnings = ["mystnb.unknown_mime_type"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "extra_repr, listed"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_title = "r2l"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_last_updated_fmt = None
html_theme_options = {
    "repository_url": "https://github.com/raw2logit/r2l",
    "repository_branch": "HEAD",
    "path_to_docs": "",
    "use_repository_button": True,
    "use_download_button": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "launch_buttons": {
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "notebook_interface": "jupyterlab",
    },
}

WIDGET = "application/vnd.jupyter.widget-view+json"
LIVE = (
    '<p class="r2l-live">Sliders and menus stand here once the lesson runs (the rocket above opens it); '
    "a figure beside them shows the same.</p>"
)
#: What the API's pages show, a page a package.
PACKAGES = (
    *("camera", "files", "rawfile", "sensor", "isp", "learn", "datasets", "training"),
    *("drift", "drift.forensics", "drift.adjustment", "viz", "widgets", "exercises"),
)


def clean(app, name, text):
    """Show what a page can show: no badges (the rocket does that), no widgets' text, answers folded."""
    if not name.startswith("notebooks/0"):
        text[0] = re.sub(r"^\[!\[.*\n", "", text[0], flags=re.MULTILINE)
        return
    notebook = json.loads(text[0])
    for cell in notebook["cells"]:
        cell["source"] = [line for line in cell["source"] if not line.startswith("[![")]
        tags = cell["metadata"].get("tags", [])
        if "solution" in tags:
            cell["metadata"]["tags"] = [*tags, "hide-cell"]
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output["data"] = {"text/html": LIVE}
    text[0] = json.dumps(notebook)


def link_words(app, doctree):
    """Link the first mention of each of the glossary's words in a lesson."""
    name = app.env.docname
    if not name.startswith("notebooks/0"):
        return
    terms = re.findall(r"^(\S.*)\n: ", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
    waiting = {term.lower(): term for term in sorted(terms, key=len, reverse=True)}
    for text in list(doctree.findall(nodes.Text)):
        parent = text.parent
        around = parent.parent if isinstance(parent, nodes.strong | nodes.emphasis) else parent
        if not waiting or not isinstance(around, nodes.paragraph):
            continue
        words = "|".join(map(re.escape, waiting))
        first = re.search(rf"\b(?:{words})(?=s?\b)", text, re.IGNORECASE)
        if first is None:
            continue
        term = waiting.pop(first[0].lower())
        link = addnodes.pending_xref(
            "", nodes.inline("", first[0]), refdomain="std", reftype="term", reftarget=term,
            refdoc=name, refexplicit=True, refwarn=True,
        )  # fmt: skip
        rest = [nodes.Text(text[: first.start()]), link, nodes.Text(text[first.end() :])]
        parent.replace(text, rest)


def public(package, seen):
    """Yield the name and kind of the classes and functions of r2l that a package offers, each once."""
    module = import_module(package)
    for name in dir(module):
        value = getattr(module, name)
        own = name[0] != "_" and str(getattr(value, "__module__", "")).startswith("r2l")
        if own and (isclass(value) or isfunction(value)) and value not in seen:
            seen.add(value)
            yield name, "class" if isclass(value) else "function"


def write_references(app):
    """Write the pages of the command line and of the API from what is installed."""
    from typer import Context
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from r2l.cli import app as commands

    folder = ROOT / "docs" / "_generated"
    folder.mkdir(exist_ok=True)
    pages = {}
    context = Context(get_command(commands), info_name="r2l")
    text = get_docs_for_click(obj=context.command, ctx=context, name="r2l")
    pages["cli.md"] = text.replace("# `r2l`", "# The command line", 1)
    seen = set()
    for package in PACKAGES:
        title = f"r2l.{package}"
        lines = [title, "=" * len(title), "", f".. automodule:: {title}", ""]
        for name, kind in public(title, seen):
            lines += [f".. auto{kind}:: {title}.{name}"] + ["   :members:"] * (kind == "class") + [""]
        pages[f"{title}.rst"] = "\n".join(lines)
    for name, page in pages.items():
        if not (folder / name).exists() or (folder / name).read_text("utf-8") != page:
            (folder / name).write_text(page, "utf-8")


def first_page(app, error):
    """Lead from the site's root to its first page."""
    if error is None and app.builder.name == "html":
        goal = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>r2l</title>'
        (Path(app.outdir) / "index.html").write_text(f'{goal}<a href="docs/index.html">r2l</a>\n', "utf-8")


def setup(app):
    """Connect the above."""
    warnings.simplefilter("ignore")
    app.connect("builder-inited", write_references)
    app.connect("source-read", clean)
    app.connect("doctree-read", link_words)
    app.connect("build-finished", first_page)
