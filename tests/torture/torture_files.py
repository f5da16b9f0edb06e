"""More than 10,000 files that are not as they should be: each is read, or refused by a documented error.

`make torture` runs it; by itself: ``pytest tests/torture/torture_files.py``. Files of each kind are made by
the package, mutated (see `tests.torture.mutate`) and read in processes of their own, where a crash, a reader
that does not come back, and memory without bounds can be told from a file that is refused. Anything but an
error that the reader's docstring names is a fault; the file that did it is kept. The same files every time.

R2L_TORTURE_EXAMPLES is the number of files, if it is to be another; with R2L_SAMPLE_RAWS set to a folder,
real raw files are mutated too.
"""

import faulthandler
import functools
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import strategies as st
from PIL import Image

from r2l.camera import DRONE, Camera
from r2l.rawfile import load_camera, read_raw, write_dng
from tests.test_rawfile import SENSOR, make_linear, make_xtrans, random_mosaic, to_16_bit
from tests.torture import mutate
from tests.torture.mutate import Mutants

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "torture"
WANTED = int(os.environ.get("R2L_TORTURE_EXAMPLES", "0"))
LEAST = 10_000
#: Files a process reads before the next one begins.
BATCH = 800
#: Faults of one batch after which it is given up.
MOST_FAULTS = 20
TINY = (24, 32)

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as on Linux"),
]


class Seed(NamedTuple):
    """A file as it should be, in a folder of its own with what belongs to it."""

    target: Path
    mutants: Mutants


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    examples: int  # how many mutants there are to be
    make: Callable[[Path], list[Seed] | None]  # writes seeds into a folder
    read: Callable[[Path], Any]  # raises AssertionError if what it gives is not what is promised
    documented: tuple[str, ...]  # names of what else it may raise
    is_named: bool = True  # whether an error has to name the file, or its folder
    seconds: float = 20.0  # that reading may take
    mb: int = 2048  # of memory that it may need, beyond what was there before
    mutants: Callable[[bytes], Mutants] | None = None  # of each file that is written; else `make` tells


# Kinds of files. What takes long to import is imported by those who need it.


def _seed(folder: Path, name: str, mutants: Callable[[bytes], Mutants], content: Any = None) -> Seed:
    """Return a seed of one file: of its content, or already written."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    whole = target.read_bytes()
    return Seed(target, mutants(whole).filter(lambda mutant: mutant != whole))


def _checked(path: Path, camera: Camera | None = None) -> None:
    """Read a raw file; see that the mosaic is as `read_raw` promises."""
    mosaic = read_raw(path, camera).mosaic
    assert mosaic.dtype == np.float32
    assert mosaic.ndim == 2
    assert all(side >= 2 and side % 2 == 0 for side in mosaic.shape), mosaic.shape
    assert np.isfinite(mosaic).all()
    assert mosaic.min() >= 0
    assert mosaic.max() <= 1


def _raws(folder: Path) -> None:
    values = to_16_bit(random_mosaic(TINY))
    # Names other than .dng: LibRaw looks at the content, and the reader at the name of TIFF alone.
    for name in ("plain.dng", "plain.nef", "plain.cr2", "plain.tif"):
        write_dng(folder / name, random_mosaic(TINY), SENSOR)
    write_dng(folder / "drone.arw", random_mosaic((64, 64)), DRONE)
    make_xtrans(folder / "xtrans.dng")
    make_linear(folder / "linear.dng")
    version, pattern = (50706, "B", 4, bytes((1, 4, 0, 0)), True), bytes((0, 1, 1, 2))
    mosaic = (33421, "H", 2, (2, 2), True), (33422, "B", 4, pattern, True)
    tags = {"photometric": "cfa", "metadata": None, "extratags": [version, *mosaic]}
    tifffile.imwrite(folder / "tiles.dng", np.tile(values, (4, 4)), tile=(16, 16), **tags)
    tifffile.imwrite(folder / "strips.dng", values, rowsperstrip=4, byteorder=">", **tags)
    tifffile.imwrite(folder / "deflate.dng", values, compression="zlib", **tags)
    tifffile.imwrite(folder / "eight.dng", (values >> 8).astype(np.uint8), **tags)
    cut = (50829, "I", 4, (1, 1, 23, 31), True)
    tifffile.imwrite(folder / "margins.dng", values, **tags | {"extratags": [version, *mosaic, cut]})
    model = (272, "s", 0, "NIKON D850", True), (271, "s", 0, "NIKON CORPORATION", True)
    tifffile.imwrite(folder / "maker.nef", values, **tags | {"extratags": [*model, *mosaic]})


def _raw_mutants(content: bytes) -> Mutants:
    plain = mutate.edited(content, mutate.RAW_TOKENS)
    return mutate.tiff(content) | plain if content[:2] in (b"II", b"MM") else plain


def _samples(folder: Path) -> None:
    place = Path(os.environ.get("R2L_SAMPLE_RAWS", ""))
    suffixes = (".dng", ".cr2", ".cr3", ".nef", ".arw")
    files = [path for path in sorted(place.iterdir()) if path.suffix.lower() in suffixes]
    for path in files[:8]:
        shutil.copyfile(path, folder / path.name)


def _tiffs(folder: Path) -> None:
    sixteen = to_16_bit(random_mosaic(TINY))
    eight, single = (sixteen >> 8).astype(np.uint8), (sixteen / 65535).astype(np.float32)
    grey = functools.partial(tifffile.imwrite, photometric="minisblack", metadata=None)
    types = [eight, sixteen, sixteen.astype(np.uint32), single.astype("f2"), single, single.astype("f8")]
    for values in types:
        grey(folder / f"{values.dtype}.tif", values)
    grey(folder / "zlib.tif", sixteen, compression="zlib", rowsperstrip=8)
    grey(folder / "lzma.tif", sixteen, compression="lzma")
    grey(folder / "tiles.tif", np.tile(sixteen, (2, 2)), tile=(16, 16), compression="zlib")
    grey(folder / "big.tif", sixteen, bigtiff=True, rowsperstrip=4)
    grey(folder / "motorola.tiff", sixteen, byteorder=">")
    grey(folder / "pages.tif", np.stack([eight, eight]))
    tifffile.imwrite(folder / "rgb.tif", np.dstack([eight] * 3), photometric="rgb", metadata=None)
    tifffile.imwrite(folder / "imagej.tif", sixteen, imagej=True)
    tifffile.imwrite(folder / "ome.ome.tif", sixteen, ome=True)
    picture = Image.fromarray(eight)
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        picture.save(folder / f"{compression}.tif", compression=compression)
    picture.convert("1").save(folder / "group4.tif", compression="group4")
    picture.convert("1").save(folder / "1.tif")


def _pngs(folder: Path) -> None:
    sixteen = to_16_bit(random_mosaic(TINY))
    eight = (sixteen >> 8).astype(np.uint8)
    Image.fromarray(eight).save(folder / "8.png")
    Image.fromarray(sixteen).save(folder / "16.png")
    Image.fromarray(np.dstack([eight] * 3)).save(folder / "rgb.png")
    Image.fromarray(np.dstack([eight] * 2), "LA").save(folder / "la.png")
    Image.fromarray(eight).convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(eight > 99).save(folder / "1.png")


def _views(folder: Path) -> list[Seed]:
    picture = np.dstack([to_16_bit(random_mosaic(TINY))] * 3)
    tifffile.imwrite(folder / "16.tif", picture, photometric="rgb", metadata=None)
    tifffile.imwrite(folder / "planes.tiff", np.moveaxis(picture, 2, 0), planarconfig="separate")
    Image.fromarray((picture >> 8).astype(np.uint8)).save(folder / "8.png")
    np.save(folder / "float.npy", picture / 65535)
    forms = {".tif": mutate.tiff, ".tiff": mutate.tiff, ".png": mutate.png, ".npy": mutate.npy}
    return [_seed(folder, path.name, forms[path.suffix]) for path in sorted(folder.iterdir())]


def _read_view(path: Path) -> None:
    from r2l.datasets.pixels import read_view

    view = read_view(path, "Fetch it again")
    assert view.dtype == np.uint16
    assert view.shape[0] == 3


def _npys(folder: Path) -> None:
    for kind in ("u1", ">u2", "f2", "f4", "f8"):
        values = random_mosaic(TINY) if "f" in kind else random_mosaic(TINY) * 255
        np.save(folder / f"{kind[-2:]}.npy", values.astype(kind))


_STEMS = ("one", "two", "three", "four")


def _labels(folder: Path) -> list[Seed]:
    rows = "".join(f"{stem}.npy,{'ab'[i % 2]},{i // 2}\n" for i, stem in enumerate(_STEMS))
    mutants = functools.partial(_text, words=mutate.CSV_WORDS)
    tables = {
        "plain": f"file,label,group\n{rows}",
        "quoted": 'label,file\n"a, b","one.npy"\n"c","two.npy"\n"c","three.npy"\nd,four.npy\n',
    }
    seeds = []
    for name, table in tables.items():
        for stem in _STEMS:
            (folder / name / "images").mkdir(parents=True, exist_ok=True)
            np.save(folder / name / "images" / f"{stem}.npy", random_mosaic((2, 2)))
        seeds.append(_seed(folder, f"{name}/labels.csv", mutants, table))
    words = "".join(f"Ma190c_lame1_zone{i}_composite_Mcropped_1 LYT\n" for i in range(5))
    return [*seeds, _seed(folder, "annotations/labels.dat", mutants, words)]


def _text(content: bytes, words: Any) -> Mutants:
    return mutate.text(content.decode(), words) | mutate.edited(content)


def _read_labels(path: Path) -> None:
    if path.suffix == ".dat":
        from r2l.datasets.layout import read_labels

        assert all(name and label for name, label in read_labels(path)[0].items())
        return
    from r2l.datasets import RawFolder

    for strict in (False, True):
        data = RawFolder(path.parent / "images", labels=path, camera=DRONE, strict=strict)
        assert len(data) == len(data.labels) == len(data.paths)
        assert all(path.parent in image.parents for image in data.paths)


def _masks(folder: Path) -> list[Seed]:
    (folder / "kinds").mkdir()
    seeds = []
    _pngs(folder / "kinds")
    for path in sorted((folder / "kinds").iterdir()):
        place = folder / path.stem
        for inner in ("images", "masks"):
            (place / inner).mkdir(parents=True)
        np.save(place / "images" / "one.npy", random_mosaic(TINY))
        seeds.append(_seed(place, "masks/one.png", mutate.png, path.read_bytes()))
    return seeds


def _read_masks(path: Path) -> None:
    from r2l.datasets import RawFolder
    from r2l.datasets.pixels import read_mask

    mask = read_mask(path, "Draw it again")
    assert set(np.unique(mask)) <= {0, 1}
    for classes in (None, [str(i) for i in range(256)]):
        data = RawFolder(path.parents[1] / "images", masks=path.parent, camera=DRONE, classes=classes)
        item = data[0]
        assert item["raw"].shape[1:] == item["mask"].shape == TINY


def _cameras(folder: Path) -> list[Seed]:
    mutants = functools.partial(mutate.values_json, values=("RGGB", "RGBG", "gbrg"))
    cameras = {"sensor": SENSOR, "drone": DRONE}
    return [_seed(folder, f"{n}.json", mutants, json.dumps(c.to_dict())) for n, c in cameras.items()]


def _read_camera(path: Path) -> None:
    camera = load_camera(path)
    assert Camera.from_dict(json.loads(json.dumps(camera.to_dict()))) == camera
    assert hash(camera) == hash(load_camera(path))


def _reports(folder: Path) -> list[Seed]:
    from r2l.drift.forensics import ToleranceReport

    edges = ("low", "high", "safe_low", "safe_high")
    row = {"label": "x", "unit": "", "value": 1.0} | dict.fromkeys(edges, 1.0)
    row |= {f"{edge}_open": False for edge in edges}
    table = pd.DataFrame([row] * 3, index=pd.Index(["exposure", "red_gain", "gamma"], name="setting"))
    words = {"model": "a model", "pipeline": "bi,s,ga", "metric": "accuracy"}
    numbers = {"drop": 0.05, "level": 0.95, "score": 0.9, "images": 9, "groups": 3}
    report = ToleranceReport(camera=SENSOR, table=table, **words, **numbers)
    report.save(folder / "report.json")
    return [_seed(folder, "report.json", mutate.values_json)]


def _read_report(path: Path) -> None:
    from r2l.drift.forensics import ToleranceReport

    report = ToleranceReport.load(path)
    with suppress(ValueError):  # is documented: colours that can't be compared
        found = report.check(DRONE)
        assert set(found["verdict"]) <= {"inside", "outside", "unknown"}


def _notebook(folder: Path) -> None:
    import nbformat

    notebook = nbformat.v4.new_notebook()
    code = "SIZE = 4\nSCALE = 1.0\nSEEDS = [0]\nCHECK = True\nNAME = 'x'\nANY = None"
    notebook.cells = [nbformat.v4.new_code_cell(code, metadata={"tags": ["parameters"]})]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, folder / "01_one.ipynb")


def _yaml_seed(folder: Path, name: str, text: str, *values: Any) -> Seed:
    import yaml

    decoded = yaml.safe_load(text)
    mutants = functools.partial(mutate.values_yaml, decoded=decoded, values=values)
    return _seed(folder, name, mutants, text)


_PARAMETERS = """# Parameters for 01_one.ipynb
# What it is.
SIZE: 9
SCALE: 2.5
SEEDS: [1, 2]
ANY: {a: [b]}
"""


def _parameters(folder: Path) -> list[Seed]:
    _notebook(folder)
    return [_yaml_seed(folder, "one.yaml", _PARAMETERS)]


def _read_parameters(path: Path) -> None:
    from r2l.sweep import read_sweep

    for job in read_sweep(path).jobs:
        assert all(isinstance(name, str) for name in job.parameters)


_GRID = """# Twelve trainings.
train: {dataset: SyntheticMicroscopy, n_images: 60, image_size: 32, epochs: 2, n_splits: 3, lr: 0.01,
        adv_parameters: all, test_pipelines: all}
grid:
  pipeline: ["bi,s,ga", "me,u,me", parametrized, none]
  fold: [0, 1, 2]
"""
_NOTEBOOK_GRID = """# Two of a notebook.
notebook: 01_one.ipynb
parameters: {SIZE: 3, CHECK: false}
grid: {SEEDS: [[1], [2]]}
"""


def _sweeps(folder: Path) -> list[Seed]:
    _notebook(folder)
    names = ("01_one.ipynb", "../01_one.ipynb", "static", "Drone", "resnet18", ["bi,s,ga"] * 2)
    values = (*names, [0, 1], list(range(400)), {"1": 2, "a": {"b": []}})
    texts = {"grid": _GRID, "notebook": _NOTEBOOK_GRID, "parameters": _PARAMETERS}
    seeds = [_yaml_seed(folder, f"{name}.yaml", text, *values) for name, text in texts.items()]
    # A few lines, and more runs than there are grains of sand.
    axes = {n: list(range(1, 5000)) for n in ("seed", "epochs", "n_images", "batch_size", "lr")}
    endless = json.dumps({"train": {"dataset": "SyntheticMicroscopy"}, "grid": axes}).encode()
    return [Seed(seed.target, seed.mutants | st.just(endless)) for seed in seeds]


def _read_sweep(path: Path) -> None:
    from r2l.sweep import read_sweep

    sweep = read_sweep(path)
    assert len({job.hash for job in sweep.jobs}) == len(sweep.jobs) > 0
    assert all(len(job.name) <= 100 and "/" not in job.name for job in sweep.jobs)


def _clusters(folder: Path) -> list[Seed]:
    texts = {
        "local": "# Here.\ncluster: local\nworkers: 2\nthreads: 1\nwait: 5\n",
        "address": "# There.\naddress: tcp://127.0.0.1:9\nworkers: 2\nwait: 1.5\n",
        "slurm": "# SLURM.\ncluster: slurm\nworkers: 8\noptions: {queue: gpu, cores: 1, memory: 16GB}\n",
    }
    values = ("local", "slurm", "kubernetes", "8", 2, -3, 2.5, [2])
    return [_yaml_seed(folder, f"{name}.yaml", text, *values) for name, text in texts.items()]


def _read_cluster(path: Path) -> None:
    from r2l.sweep import open_engine

    engine = open_engine(cluster=path)
    assert engine.workers >= 1
    assert engine.threads is None or engine.threads >= 1


def _isps(folder: Path) -> list[Seed]:
    from r2l.isp import HalfSizeRGB, ParametrizedISP, StaticISP, save_isp

    isps = {
        "static": StaticISP.from_code("ma,u,me", SENSOR),
        "parametrized": ParametrizedISP(DRONE),
        "additive": ParametrizedISP(DRONE, (1, 3, 8, 8)),
        "none": HalfSizeRGB(DRONE),
    }
    values = ("menon2007", "fft_denoising", "paper", "NeuralISP")
    values += ([1, 3, 10**6, 10**6], [10**12], [1, 3, 8], [-1])
    seeds = []
    for name, isp in isps.items():
        save_isp(isp, folder / name)
        description = functools.partial(mutate.values_json, values=values)
        seeds += [_seed(folder / name, "isp.json", description)] * 2
        save_isp(isp, folder / f"{name} weights")
        seeds.append(_seed(folder / f"{name} weights", "weights.safetensors", mutate.tensors))
    return seeds


def _models(folder: Path) -> list[Seed]:
    from r2l.training.models import make_classifier, make_regressor
    from r2l.training.saving import save_model

    targets = {"name": "SmallResNet", "target_mean": [1.0], "target_std": 2.0}
    made = {
        "classifier": (make_classifier, {"name": "SmallResNet", "n_classes": 3}),
        "regressor": (make_regressor, targets),
    }
    values = ("make_segmenter", "ResNet18", "resnet18", "9", True, 10**5, 10**7, 10**9)
    values += ([0.5] * 3, [-1.0] * 3)
    seeds = []
    for name, (make, arguments) in made.items():
        for part in ("", " weights"):
            about = {"maker": make.__name__, "arguments": arguments}
            save_model(about, make(**arguments), folder / f"{name}{part}")
        description = functools.partial(mutate.values_json, values=values)
        seeds += [_seed(folder / name, "model.json", description)] * 2
        seeds.append(_seed(folder / f"{name} weights", "weights.safetensors", mutate.tensors))
    return seeds


def _load_isp(path: Path) -> None:
    from r2l.isp import load_isp

    assert load_isp(path.parent).camera


def _load_model(path: Path) -> None:
    from r2l.training.saving import load_model

    assert list(load_model(path.parent).parameters())


def _checkpoints(folder: Path) -> list[Seed]:
    import torch

    states = {"order": torch.Generator().get_state(), "python": random.Random(0).getstate()}
    content = {"epoch": 3, "callbacks": {}, "generators": states, "settings": {"epochs": 4}}
    torch.save(content | {"state_dict": {"a.b": torch.ones(3, 4)}}, folder / "last.ckpt")
    return [_seed(folder, "last.ckpt", mutate.archive)]


def _read_checkpoint(path: Path) -> None:
    from r2l.training.checkpoints import _read_last

    place, found = _read_last(path.parent)
    assert place == path
    assert {"state_dict", "epoch", "callbacks", "generators", "settings"} <= set(found)


def _archives(folder: Path) -> list[Seed]:
    import zipfile

    image = io.BytesIO()
    tifffile.imwrite(image, to_16_bit(random_mosaic((8, 8))))
    stem = "Ma190c_lame1_zone1_composite_Mcropped_1"
    files = {f"raw_scale{scale}/{stem}.tiff": image.getvalue() for scale in ("100", "025")}
    files |= {"labels/Ma190c_annotations.dat": b"a LYT\n", "read.me": bytes(9)}
    seeds = []
    for name in ("STORED", "DEFLATED", "BZIP2", "LZMA"):
        inner, outer = io.BytesIO(), folder / name / "deep" / "below" / "Raw-Microscopy.zip"
        outer.parent.mkdir(parents=True)
        for place in (inner, outer):
            with zipfile.ZipFile(place, "w", getattr(zipfile, f"ZIP_{name}")) as file:
                for path, data in files.items():
                    file.writestr(path, data)
                if place is outer and name == "STORED":
                    file.writestr("more.zip", inner.getvalue())
        seeds.append(_seed(outer.parent, outer.name, mutate.archive))
    return seeds


def _unpack(path: Path) -> None:
    from r2l.datasets.fetch.download import _Destination
    from r2l.datasets.layout import Manifest

    def outside() -> set[Path]:
        return {p for p in path.parents[2].rglob("*") if path.parent not in p.parents}

    before, root, manifest = outside(), path.parent / "root", Manifest()
    root.mkdir()
    try:
        _Destination("microscopy", root, manifest, progress=False).unpack(path)
        sizes = {name: (root / name).stat().st_size for name in manifest.files}
        assert sizes == {name: size for name, (size, _) in manifest.files.items()}
    finally:
        assert outside() == before, "written outside of the root"
        written = [p.lstat().st_mode for p in root.rglob("*")]
        assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in written)
        for place in (root, path.with_suffix("")):
            shutil.rmtree(place, ignore_errors=True)


def _manifests(folder: Path) -> list[Seed]:
    from r2l.datasets.layout import MANIFEST, Manifest

    files = {"microscopy/labels/a.dat": (12, 34), "drone/b": (5, 6)}
    Manifest(files, {"a.zip": "md5:0"}, {"drone/raw_scale100": ["a", "b"]}, ["drone"]).write(folder)
    return [_seed(folder, MANIFEST, mutate.values_json)]


def _read_manifest(path: Path) -> None:
    from r2l.datasets.layout import Manifest

    manifest = Manifest.read(path.parent)
    manifest.is_whole(path.parent, "drone")
    manifest.begin(path.parent, "drone")
    manifest.finish("drone")


_on_drone = functools.partial(_checked, camera=DRONE)
_DATA = ("DatasetError", "DatasetNotFoundError", "RawFileError")
_SWEEP = ("ParameterError", "OSError")
_RAW = ("RawFileError",)

KINDS = {
    "raw": Kind(2600, _raws, _checked, _RAW, mutants=_raw_mutants),
    "TIFF": Kind(2000, _tiffs, _on_drone, _RAW, mutants=mutate.tiff),
    "PNG": Kind(1200, _pngs, _on_drone, _RAW, mutants=mutate.png),
    "NPY": Kind(600, _npys, _on_drone, _RAW, mutants=mutate.npy),
    "views": Kind(400, _views, _read_view, ("DatasetError",)),
    "labels": Kind(1200, _labels, _read_labels, _DATA),
    "masks": Kind(600, _masks, _read_masks, _DATA),
    "camera": Kind(1000, _cameras, _read_camera, ("ValueError",)),
    "tolerances": Kind(600, _reports, _read_report, ("ValueError", "OSError")),
    "parameters": Kind(800, _parameters, _read_parameters, _SWEEP, is_named=False),
    "sweep": Kind(800, _sweeps, _read_sweep, _SWEEP, is_named=False),
    "cluster": Kind(600, _clusters, _read_cluster, _SWEEP, is_named=False),
    "ISP": Kind(600, _isps, _load_isp, ("ValueError",)),
    "model": Kind(500, _models, _load_model, ("ValueError",)),
    "checkpoint": Kind(400, _checkpoints, _read_checkpoint, ("ValueError",)),
    "archive": Kind(500, _archives, _unpack, ("DownloadError",), is_named=False),
    "manifest": Kind(300, _manifests, _read_manifest, ("ValueError",)),
}
if os.environ.get("R2L_SAMPLE_RAWS"):
    KINDS["real raw"] = Kind(200, _samples, _checked, _RAW, mutants=_raw_mutants)


# Readers that do what no reader may: the harness has to notice.


def _is_marked(content: bytes) -> bool:
    # About half of all mutants; not the zeros that they are made from, and not the first drawn.
    return sum(content) % 4 > 1


def _faulty(act: Callable[[], Any], seconds: float = 20.0) -> Kind:
    """Return a kind whose reader does wrong with some files."""

    def unread(folder: Path) -> list[Seed]:
        return [_seed(folder, "a.bin", mutate.edited, bytes(200))]

    def read(path: Path) -> None:
        if _is_marked(path.read_bytes()):
            act()

    return Kind(8, unread, read, ("ValueError",), seconds=seconds, mb=200)


def _greed() -> None:
    try:
        np.ones(1 << 50, np.uint8)
    except MemoryError as error:
        raise ValueError("a.bin") from error


def _raise(error: Exception) -> None:
    raise error


#: Each with what is to be noticed of it.
WRONGS = {
    "crash": (_faulty(os.abort), "the process ended by SIGABRT"),
    "segfault": (_faulty(lambda: os.kill(os.getpid(), signal.SIGSEGV)), "the process ended by SIGSEGV"),
    "hang": (_faulty(lambda: time.sleep(60), seconds=0.5), "no answer in time"),
    "wrong error": (_faulty(lambda: _raise(KeyError("a.bin"))), "KeyError is not documented"),
    "nameless": (_faulty(lambda: _raise(ValueError("something"))), "the error does not name the file"),
    "wrong result": (_faulty(lambda: _raise(AssertionError())), "AssertionError is not documented"),
    "hoard": (_faulty(lambda: np.ones(300 << 20, np.uint8)), "more than 200 MB of memory"),
    "greed": (_faulty(_greed), "more memory than there is"),
    "exit": (_faulty(lambda: sys.exit(3)), "SystemExit is not documented"),
    "vanish": (_faulty(lambda: os._exit(0)), "the process ended by exit(0)"),
    "refusal": (_faulty(lambda: _raise(ValueError("a.bin"))), None),
}


# In a process of its own: mutants of one kind, read one after the other.


def _status(name: str) -> int:
    """Return a number of this process in bytes: VmSize, VmRSS, or VmHWM, the most since `_reset_peak`."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _is_about_memory(error: BaseException | None) -> bool:
    """Whether memory was asked for that is not there, also where a reader made another error of it."""
    if error is None:
        return False
    asked = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return asked or _is_about_memory(error.__cause__) or _is_about_memory(error.__context__)


def _fault_of(kind: Kind, path: Path, error: BaseException) -> str | None:
    """Return what is wrong with an error, if anything is."""
    if _is_about_memory(error):
        return "more memory than there is"
    if not {base.__name__ for base in type(error).__mro__} & set(kind.documented):
        return f"{type(error).__name__} is not documented"
    is_named = path.name in str(error) or str(path.parent) in str(error)
    return "the error does not name the file" if kind.is_named and not is_named else None


def _example(kind: Kind, path: Path) -> dict[str, Any]:
    """Read a file; return what came of it."""
    note: dict[str, Any] = {}
    _reset_peak()
    before, start = _status("VmRSS"), time.monotonic()
    faulthandler.dump_traceback_later(kind.seconds, exit=True)
    try:
        kind.read(path)
        note["outcome"] = "accepted"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        note["outcome"], note["fault"] = type(error).__name__, _fault_of(kind, path, error)
        if note["fault"]:
            note["traceback"] = "".join(traceback.format_exception(error))
    finally:
        faulthandler.cancel_dump_traceback_later()
    note["seconds"] = time.monotonic() - start
    note["mb"] = max(0, _status("VmHWM") - before) >> 20
    if note["mb"] > kind.mb:
        note["fault"] = f"more than {kind.mb} MB of memory"
    if note.get("fault"):
        note["outcome"] = "fault"
    return note


def _child(name: str, number: int, examples: int, work: Path, kept: Path) -> None:
    """Read mutants of a kind, and write down what came of each in ``work``."""
    kind = KINDS.get(name) or WRONGS[name][0]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    (work / "files").mkdir()
    seeds = kind.make(work / "files")
    if kind.mutants:
        seeds = [_seed(path.parent, path.name, kind.mutants) for path in sorted((work / "files").iterdir())]
    for seed in seeds:
        # Also has the reader import what it needs, which takes its time.
        if fault := _example(replace(kind, seconds=300), seed.target).get("fault"):
            raise AssertionError(f"{seed.target.name} is not even mutated: {fault}")
    limit = _status("VmSize") + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mutants = st.one_of([st.tuples(st.just(seed.target), seed.mutants) for seed in seeds])

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(mutants)
    def read(drawn: tuple[Path, bytes]) -> None:
        path, content = drawn
        before = path.read_bytes()
        path.write_bytes(content)
        (work / "now").write_text(str(path), "utf-8")
        note = _example(kind, path)
        if note.get("fault"):
            note["kept"] = str(_keep(path, name, note.pop("traceback", note["fault"]), kept))
        with (work / "notes").open("a") as notes:
            notes.write(json.dumps(note) + "\n")
        (work / "now").unlink()
        path.write_bytes(before)

    read()
    (work / "done").touch()


def _keep(path: Path, name: str, about: str, kept: Path) -> Path:
    """Copy a file that did wrong, with what belongs to it and what is known, into a folder of its own."""
    number = len(list(kept.glob(f"{name}-*"))) if kept.exists() else 0
    place = kept / f"{name}-{number}-{os.getpid()}"
    shutil.copytree(path.parent, place / "folder", symlinks=True)
    (place / "about.txt").write_text(f"folder/{path.name}\n\n{about}\n", "utf-8", errors="replace")
    return place


# The processes, and what came of them.


def _ended(code: int, errors: str) -> str:
    """Say how a process ended that did not come to its end."""
    if "Timeout (" in errors:
        return "no answer in time"
    return f"the process ended by {signal.Signals(-code).name if code < 0 else f'exit({code})'}"


def _batch(name: str, number: int, examples: int, scratch: Path, kept: Path) -> list[dict[str, Any]]:
    """Read mutants of a kind; begin another process where one was ended by a file. Return a note each."""
    notes: list[dict[str, Any]] = []
    while len(notes) < examples and sum(note["outcome"] == "fault" for note in notes) < MOST_FAULTS:
        work = scratch / f"{name}-{number}-{len(notes)}"
        work.mkdir(parents=True)
        # What is left is drawn from another seed.
        rest = [name, str(number + 1000 * len(notes)), str(examples - len(notes))]
        child = subprocess.run(
            [sys.executable, "-m", __spec__.name, *rest, str(work), str(kept)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=1800,
            check=False,
        )
        errors = child.stderr.decode(errors="replace")
        if (work / "notes").exists():
            notes += map(json.loads, (work / "notes").read_text("utf-8").splitlines())
        now = work / "now"
        if now.exists():
            why = _ended(child.returncode, errors)
            place = _keep(Path(now.read_text("utf-8")), name, f"{why}\n{errors[-20_000:]}", kept)
            notes.append({"outcome": "fault", "fault": why, "kept": str(place), "seconds": 0, "mb": 0})
        else:
            assert (work / "done").exists(), f"{name}: the test itself failed\n{errors[-4000:]}"
        shutil.rmtree(work)
    return notes


def torture(kinds: dict[str, int], scratch: Path, kept: Path) -> pd.DataFrame:
    """Read so many mutants of each kind, a process a core; return what came of each, a row each."""
    jobs = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, examples in kinds.items():
            for number, start in enumerate(range(0, examples, BATCH)):
                size = min(BATCH, examples - start)
                jobs.append((name, pool.submit(_batch, name, number, size, scratch, kept)))
    blank = {"fault": None, "kept": None}
    return pd.DataFrame([{"kind": name} | blank | note for name, job in jobs for note in job.result()])


def test_every_mutant_is_read_or_refused(tmp_path, capsys):
    planned = sum(kind.examples for kind in KINDS.values())
    assert planned >= LEAST
    share = (WANTED or planned) / planned
    kinds = {name: max(1, round(kind.examples * share)) for name, kind in KINDS.items()}
    kept = KEPT / time.strftime("%Y%m%d-%H%M%S")

    notes = torture(kinds, tmp_path, kept)

    outcomes = pd.crosstab(notes["kind"], notes["outcome"])
    most = notes.groupby("kind")[["seconds", "mb"]].max().round(1)
    with capsys.disabled():
        print(f"\n{most.join(outcomes).to_string()}\n{len(notes)} files")
    faults = notes.dropna(subset="fault").groupby(["kind", "fault"])["kept"].agg(["size", "first"])
    assert faults.empty, f"files that did wrong are in {kept}\n{faults.to_string()}"
    assert notes["kind"].value_counts().to_dict() == kinds
    if not WANTED:
        assert len(notes) >= LEAST
        # Mutants get past the first check, and not all of them past the last.
        assert ((outcomes["accepted"] > 0) & (outcomes["accepted"] < outcomes.sum(axis=1))).all()


@pytest.mark.parametrize("name", WRONGS)
def test_a_reader_that_does_wrong_is_noticed_and_the_file_kept(tmp_path, name):
    kind, noticed = WRONGS[name]

    notes = _batch(name, 0, kind.examples, tmp_path / "scratch", tmp_path / "kept")

    assert len(notes) == kind.examples
    # The others were read all the same.
    wrong = [note for note in notes if note["outcome"] != "accepted"]
    assert 0 < len(wrong) < kind.examples
    assert {note.get("fault") for note in wrong} == {noticed}
    kept = [(Path(note["kept"]) / "folder" / "a.bin").read_bytes() for note in wrong if noticed]
    assert all(map(_is_marked, kept))


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
