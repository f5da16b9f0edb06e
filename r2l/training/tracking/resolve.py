"""Addresses of what runs have written, turned into paths on this machine."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from r2l.training.tracking.records import Records
from r2l.training.tracking.store import TrackingError

CACHE_VARIABLE = "R2L_CACHE"
DEFAULT_CACHE = Path("runs/fetched")
_RUN = re.compile(r"runs:/+([0-9a-f]{32})(?:/(.+?))?/?$")
_MODEL = re.compile(r"models:/+([^/@]+)(?:@([^/]+)|/([0-9]+))$")


def resolve(
    uri: str | Path, store: str | Path | None = None, cache: str | Path | None = None
) -> Path:
    """Return the folder or file that an address means; it is fetched if it lies on a server.

    Args:
        uri: ``runs:/RUN_ID/path``, ``models:/name@alias``, ``models:/name/version``, or the path of a
            folder or a file, which is returned as it is.
        store: where runs and models are looked up, see `store_address`.
        cache: folder for what is fetched. The same artefact of the same run is fetched once; without
            asking the server, since a finished run does not change. ``artefacts`` in the folder that
            the variable R2L_CACHE names, else ``runs/fetched``, unless given. Nothing in it is ever deleted.

    Raises:
        ValueError: no such run, model, alias, version, artefact or path; names those that exist.
        TrackingError: the store can't be opened.
    """
    text = str(uri)
    if not text.startswith(("runs:", "models:")):
        path = Path(text)
        if not path.exists():
            raise ValueError(
                f"{text}: no such folder or file; give one, or runs:/RUN_ID/path, or models:/name@alias"
            )
        return path
    records = None
    if text.startswith("models:"):
        records = Records(store)
        text = _source(records, text)
    match = _RUN.match(text)
    if not match:
        raise ValueError(f"{text!r} is no address; expected runs:/RUN_ID/path, of 32 hex digits")
    run_id, path = match[1], match[2] or ""
    cached = _cache_folder(cache) / run_id / path
    if path and cached.exists():
        return cached
    records = records or Records(store)
    local = _existing(records, run_id, path)
    return local or _fetched(records, run_id, path, cached)


def _cache_folder(cache: str | Path | None) -> Path:
    if cache:
        return Path(cache)
    common = os.environ.get(CACHE_VARIABLE)
    return Path(common) / "artefacts" if common else DEFAULT_CACHE


def _source(records: Records, uri: str) -> str:
    """The ``runs:/`` address behind a registered model."""
    match = _MODEL.match(uri)
    if not match:
        raise ValueError(f"{uri!r} is no address; expected models:/name@alias or models:/name/1")
    name, alias, version = match.groups()
    known = {m.name: m for m in records.call("search_registered_models", max_results=1000)}
    if name not in known:
        listed = ", ".join(sorted(known)) or "none yet"
        raise ValueError(f"no model {name!r} in {records.address}; there are: {listed}")
    aliases = {a: str(v) for a, v in known[name].aliases.items()}
    if alias and alias not in aliases:
        listed = ", ".join(sorted(aliases)) or "none yet"
        raise ValueError(f"model {name!r} has no alias {alias!r}; it has: {listed}")
    try:
        return records.call("get_model_version", name, version or aliases[alias]).source
    except TrackingError as error:
        raise ValueError(f"model {name!r} has no version {version}") from error


def _existing(records: Records, run_id: str, path: str) -> Path | None:
    """Where the artefact lies on this disk; None if it exists, but on a server."""
    try:
        records.call("get_run", run_id)
    except TrackingError as error:
        if "not found" not in str(error):
            raise
        raise ValueError(f"no run {run_id} in {records.address}") from error
    local = records.local(run_id, path)
    if local is not None and local.exists():
        return local
    parent = path.rpartition("/")[0]
    entries = [e.path for e in records.call("list_artifacts", run_id, parent or None)]
    if local is None and (path in entries or not path):
        return None
    listed = ", ".join(entries or [f.path for f in records.call("list_artifacts", run_id)])
    raise ValueError(f"run {run_id} has no {path!r}; there are: {listed or 'no artefacts'}")


def _fetched(records: Records, run_id: str, path: str, cached: Path) -> Path:
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: what is in the cache is never looked at again.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=cached.parent) as folder:
        fetched = records.fetch(run_id, path, Path(folder))
        if path:
            os.replace(fetched, cached)
        else:
            shutil.copytree(fetched, cached, dirs_exist_ok=True)
    return cached
