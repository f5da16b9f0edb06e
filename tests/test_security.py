"""No file that is read can run code, and no server that is started listens to other machines unasked."""

import ast
import inspect
import ipaddress
import json
import os
import re
import shutil
import subprocess
from itertools import repeat
from pathlib import Path

import psutil
import pytest

from r2l.cli.lab import page
from r2l.sweep import open_engine
from r2l.training.tracking import serve
from tools.places import NOTEBOOKS, ROOT

#: What runs the code that a file, or a text, holds; or writes where an archive says.
FORBIDDEN = {
    *("eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pandas.read_pickle", "joblib.load"),
    *("marshal.load", "marshal.loads", "shelve.open", "torch.hub.load", "torch.jit.load"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.load_all", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "shutil.unpack_archive"),
}
FORBIDDEN_MODULES = {"dill", "cloudpickle", "cPickle", "_pickle", "jsonpickle"}
FORBIDDEN_METHODS = {"extractall", "read_pickle", "load_from_checkpoint", "unsafe_load"}
#: Where everything depends on an argument: its name, the value that is safe, and whether that is the default.
SAFE_IF = {
    "torch.load": ("weights_only", True, False),
    "torch.hub.load_state_dict_from_url": ("weights_only", True, False),
    "numpy.load": ("allow_pickle", False, True),
    "jinja2.Environment": ("autoescape", True, False),
}
_STARTS = [f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")]
SAFE_IF |= dict.fromkeys(_STARTS, ("shell", False, True))


def dangers(source: str) -> list[str]:
    """Return what in Python code could run what it reads, as "line: name"."""
    tree = ast.parse(source)
    aliases = _aliases(tree)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {node.name for node in classes if "yaml.SafeLoader" in [_name(b, aliases) for b in node.bases]}
    safe_loaders = own | {"yaml.SafeLoader", "yaml.CSafeLoader"}
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = set()
    for node in ast.walk(tree):
        name = _name(node, aliases)
        method = node.attr if isinstance(node, ast.Attribute) else ""
        if name in FORBIDDEN or method in FORBIDDEN_METHODS or name.partition(".")[0] in FORBIDDEN_MODULES:
            found.add((node.lineno, name or method))
        elif name in SAFE_IF or name == "yaml.load":
            # Handed on, it is called elsewhere, with its defaults.
            is_safe = SAFE_IF.get(name, (..., ..., False))[2]
            if node in calls:
                is_safe = _is_safe_call(name, calls[node], aliases, safe_loaders)
            if not is_safe:
                found.add((node.lineno, name))
    for call in calls.values():
        if _argument(call, "ckpt_path") and _constant(call, "weights_only") is not True:
            found.add((call.lineno, "ckpt_path without weights_only=True"))
    return [f"{line}: {what}" for line, what in sorted(found)]


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return the names that imports make, and what they stand for."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                # `import a.b` makes the name a.
                aliases |= {name.asname: name.name} if name.asname else {}
        elif isinstance(node, ast.ImportFrom):
            aliases |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return aliases


def _name(node: ast.AST, aliases: dict[str, str]) -> str:
    """Return the full name of what an expression is, "" if it has none."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        above = _name(node.value, aliases)
        return f"{above}.{node.attr}" if above else ""
    return ""


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def _constant(call: ast.Call, name: str) -> object:
    """Return an argument's value; None where it is not given, or can't be told."""
    value = _argument(call, name)
    return value.value if isinstance(value, ast.Constant) else None


def _is_safe_call(name: str, call: ast.Call, aliases: dict[str, str], safe_loaders: set[str]) -> bool:
    if name == "yaml.load":
        loader = call.args[1] if len(call.args) > 1 else _argument(call, "Loader")
        return loader is not None and _name(loader, aliases) in safe_loaders
    if name not in SAFE_IF:
        return False
    argument, safe, by_default = SAFE_IF[name]
    is_given = _argument(call, argument) is not None
    hidden = any(k.arg is None for k in call.keywords)  # among **options
    return _constant(call, argument) is safe if is_given else by_default and not hidden


def code_of(path: Path) -> str:
    """Return the code of a module, or of a notebook's cells without lines that are IPython's."""
    if path.suffix == ".py":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").split("\n")
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


FILES = [path for folder in ("r2l", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
FILES += sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    assert not dangers(code_of(path))


RUN = [
    "import pickle; pickle.load(f)",
    "import pickle as p\ndef g(): return map(p.loads, texts)",
    "from pickle import Unpickler; Unpickler(f).load()",
    "import dill; dill.load(f)",
    "import joblib; joblib.load(p)",
    "import pandas as pd; pd.read_pickle(p)",
    "import torch; torch.load(p)",
    "import torch; torch.load(p, weights_only=False)",
    "import torch; torch.load(p, weights_only=flag)",
    "import torch; torch.load(p, **options)",
    "from torch import load; load(p)",
    "import torch; read = torch.load",
    "import torch; torch.hub.load(r, m)",
    "from torch.hub import load_state_dict_from_url as get; get(u)",
    "Module.load_from_checkpoint(p)",
    "trainer.fit(m, ckpt_path=p)",
    "import numpy as np; np.load(p, allow_pickle=True)",
    "import numpy as np; np.load(p, allow_pickle=flag)",
    "import numpy as np; np.load(p, **options)",
    "import yaml; yaml.load(t)",
    "import yaml; yaml.load(t, yaml.Loader)",
    "import yaml; yaml.load(t, Loader=yaml.FullLoader)",
    "import yaml\nclass Mine(yaml.Loader): ...\nyaml.load(t, Mine)",
    "import yaml; yaml.unsafe_load(t)",
    "import mlflow.pytorch; mlflow.pytorch.load_model(u)",
    "import shutil; shutil.unpack_archive(p)",
    "import zipfile; zipfile.ZipFile(p).extractall(d)",
    "import tarfile\nwith tarfile.open(p) as t: t.extractall(d, filter='data')",
    "import subprocess; subprocess.run(c, shell=True)",
    "from subprocess import Popen; Popen(c, shell=flag)",
    "import os; os.system(c)",
    "eval(t)",
    "exec(t)",
    "import builtins; builtins.exec(t)",
    "from jinja2 import Environment; Environment()",
]
READ = [
    "import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass",
    "import torch; torch.load(p, weights_only=True)",
    "import torch; model.eval(); torch.jit.script(m)",
    "import ast; ast.literal_eval(t)",
    "import numpy as np; np.load(p); np.load(p, allow_pickle=False)",
    "import yaml; yaml.safe_load(t); yaml.load(t, Loader=yaml.SafeLoader)",
    "import yaml\nclass Mine(yaml.SafeLoader): ...\nyaml.load(t, Mine)",
    "import subprocess; subprocess.run([a, b], check=False)",
    "import subprocess\ndef stop(process: subprocess.Popen): ...",
    "trainer.fit(m, ckpt_path=p, weights_only=True)",
    "import json; json.load(f)",
]


@pytest.mark.parametrize(("code", "runs"), [*zip(RUN, repeat(True)), *zip(READ, repeat(False))])
def test_the_scan_finds_what_runs_code_and_lets_pass_what_reads_data(code, runs):
    assert bool(dangers(code)) is runs


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


@pytest.mark.parametrize("start", [serve, page], ids=["serve", "r2l lab"])
def test_the_lab_is_for_this_machine_unless_asked(start):
    assert is_loopback(inspect.signature(start).parameters["host"].default)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize(("target", "argument"), [("explorer", "--ip "), ("lab", "--ip=")])
def test_pages_that_make_serves_are_for_this_machine(target, argument):
    plain = {name: value for name, value in os.environ.items() if name != "IP"}
    command = ["make", "--dry-run", "--no-print-directory", target]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout
    given = re.findall(rf"{argument}(\S+)", done)
    assert all(map(is_loopback, given))
    # JupyterLab's own default is this machine; Voila is told.
    assert given or target == "lab"


def test_workers_of_a_sweep_are_for_this_machine():
    here = psutil.Process()
    before = {c.laddr for c in here.net_connections() if c.status == psutil.CONN_LISTEN}
    with open_engine(workers=1).connect():
        processes = [here, *here.children(recursive=True)]
        open_ = [connection for process in processes for connection in process.net_connections("inet")]
        listening = {c.laddr for c in open_ if c.status == psutil.CONN_LISTEN} - before
    # The scheduler, the worker and what watches over it.
    assert len(listening) >= 3
    assert all(is_loopback(address.ip) for address in listening)
