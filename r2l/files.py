"""Files written whole or not at all, and the one form in which a user is told what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import ArrayLike

T = TypeVar("T")


class R2LError(Exception):
    """Something that a user can mend: what it is about, why it fails, and what to do, without full stops.

    Each kind of trouble is a subclass that is also the standard error of that kind (`ValueError`,
    `OSError`), so that both names catch it.

    >>> print(R2LError("photo.dng", "the file is empty", "Copy it again"))
    photo.dng: the file is empty.
    Copy it again.
    """

    def __init__(self, what: str | Path, why: str = "", remedy: str = "") -> None:
        if not why:
            # torch makes the error of a loader's worker anew from its text, below a traceback.
            text = str(what).rpartition(f"{type(self).__name__}: ")[2].strip()
            first, _, remedy = text.removesuffix(".").rpartition(".\n")
            what, _, why = first.partition(": ")
        # Not super(): OSError would take three arguments for a number, a text and a file's name.
        Exception.__init__(self, str(what), why, remedy)

    def __str__(self) -> str:
        what, why, remedy = self.args
        return f"{what}: {why}.\n{remedy}."


class MissingExtraError(R2LError, ImportError):
    """A library is not installed that an extra of the package brings; says which extra."""


def offer_late(package: str, homes: Mapping[str, Iterable[str]]) -> None:
    """Let a package offer names, by the module that has them, which is imported when one is first used."""
    home_of = {name: module for module, names in homes.items() for name in names}

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in home_of:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = self.__dict__[name] = getattr(import_module(home_of[name]), name)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # A function goes before the module of its name, which Python puts here on import.
            if name not in home_of or not isinstance(value, ModuleType):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*self.__dict__, *home_of})

    sys.modules[package].__class__ = Package


def need_extra(extra: str, *modules: str) -> None:
    """Raise unless modules are installed that ``pip install 'r2l[EXTRA]'`` brings.

    >>> need_extra("train", "json")
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        why = f"not installed ({', '.join(missing)}); plain r2l is ISPs, raw files and data sets"
        raise MissingExtraError(f"r2l[{extra}]", why, f"pip install 'r2l[{extra}]'")


@overload
def choose(what: str, name: str, options: Mapping[str, T]) -> T: ...
@overload
def choose(what: str, name: str, options: Iterable[str]) -> str: ...
def choose(what: str, name: str, options: Mapping[str, Any] | Iterable[str]) -> Any:
    """Return ``name``, or what ``options`` has under it if it is a mapping; a ValueError lists them.

    >>> choose("colour", "blu", {"red": 0, "blue": 2})
    Traceback (most recent call last):
    ValueError: unknown colour 'blu' (did you mean blue?); choose from red, blue
    """
    options = options if isinstance(options, Mapping) else list(options)
    # What comes from a file may be a list, which is no key of a mapping.
    if not isinstance(name, str) or name not in options:
        spelt = {option.lower(): option for option in options}
        near = [f" (did you mean {spelt[key]}?)" for key in get_close_matches(str(name).lower(), spelt, 1)]
        raise ValueError(f"unknown {what} {name!r}{''.join(near)}; choose from {', '.join(options)}")
    return options[name] if isinstance(options, Mapping) else name


def check_groups(groups: ArrayLike) -> np.ndarray:
    """Return which images hang together, a group each, (N,); a ValueError where one has none (None, NaN).

    >>> check_groups(["a", "a", "b"]).tolist()
    ['a', 'a', 'b']
    """
    import numpy as np
    import pandas as pd

    missing = np.flatnonzero(pd.isna(list(groups) if isinstance(groups, tuple) else groups))
    if len(missing):
        told = (
            f"groups: {len(missing)} of {np.size(groups)} images have none (the first is image {missing[0]})"
        )
        raise ValueError(f"{told}, and would count as one group: name theirs, or leave them out")
    return np.asarray(groups)


def load_named(text: str, what: str) -> Any:
    """Return what ``module:name`` means, code of one's own; modules in the current folder are found too.

    >>> load_named("math:sqrt", "function")(4.0)
    2.0

    Raises:
        R2LError: no such module, no such name in it, or nothing that can be called.
    """
    module, _, name = text.partition(":")
    sys.path.append(os.getcwd())  # last: what is installed goes first
    try:
        named = resolve_name(f"{module}:{name}")
    except (ImportError, AttributeError, ValueError) as error:
        remedy = f"Give module:name of a {what} in a file here (mine.py is mine) or in a package"
        raise R2LError(text, f"no such {what} of your own ({error})", remedy) from error
    finally:
        sys.path.pop()
    if not callable(named):
        raise R2LError(text, f"a {type(named).__name__}, no {what}", "Give what can be called")
    return named


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` if the block ends well, and goes if it doesn't.

    An OSError of the block or the renaming has ``path`` as its file.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def csv_text(table: pd.DataFrame, index: bool = False) -> str:
    """Return a table as CSV, with every digit.

    Libraries of colour set numpy's print options for the whole process, and pandas prints by those: twelve
    digits of sixteen.
    """
    import numpy as np

    with np.printoptions(legacy=False):
        return str(table.to_csv(index=index))


def write_csv(table: pd.DataFrame, path: Path, index: bool = False) -> None:
    """Write a table, whole or not at all; `read_csv` gives the same numbers."""
    with atomic_path(path) as partial:
        partial.write_text(csv_text(table, index), "utf-8", newline="")


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table with every digit of its numbers."""
    import pandas as pd

    # Since 3.1 pandas has one reader of numbers, an exact one, and warns of the choice.
    exact = tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
    return pd.read_csv(path, float_precision=None if exact else "round_trip")


def local_path(address: str | Path) -> Path:
    """Return the path that a user wrote: ``~`` is the home, and ``file:///x`` is ``/x``.

    >>> local_path("file:///data/my%20photos").as_posix()
    '/data/my photos'
    """
    text = str(address)
    if text.startswith("file:"):
        text = url2pathname(urlsplit(text).path)
    return Path(text).expanduser()


def identity(*parts: Any) -> str:
    """Return the hash, 12 digits, of plain values that something depends on, such as options and data."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def content_hash(path: Path) -> str:
    """Return a hash of what a file holds; read once as long as its size and time of change stay."""
    stat = path.stat()
    return _content_hash(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(100_000)
def _content_hash(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Return a picture, *display* domain, in steps of 8 bit; beyond [0, 1] is 0 or 255, NaN is 0."""
    import numpy as np  # not needed by the command's help, which uses this module too

    steps = np.fmax(values, 0)
    np.fmin(steps, 1, out=steps)
    steps *= 255
    return np.rint(steps, out=steps).astype(np.uint8)
