"""The data set that the options of an experiment name.

Apart from what trains on it, whose libraries take seconds to import: a sweep's plan needs the data alone.
"""

import re
import warnings

from r2l import datasets
from r2l.datasets import DatasetError, RawDataset, RawFolder
from r2l.datasets.folder import is_number
from r2l.files import content_hash, identity
from r2l.options import Options
from r2l.rawfile import RawLayout, load_camera


def data_identity(options: Options) -> str:
    """Return a hash of the data that the options name: labels, numbers, camera, and what their files hold.

    "" of data that code makes, and of data that can't be opened (which whoever reads them will tell).
    """
    if options.dataset.startswith("Synthetic"):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when they are read
            data = open_dataset(options)
        contents = [content_hash(path) for path in data.sources]
    except (OSError, ValueError):
        return ""
    listed = (each.tolist() for each in (data.names, data.labels, data.groups))
    return identity(*listed, data.classes, data.camera.to_dict(), contents)


def open_dataset(options: Options) -> RawDataset:
    """Return the data set that the options name; its files are looked for and listed, not read."""
    name, iso, root = options.dataset, options.iso, options.root
    if name == "RawFolder":
        camera = load_camera(options.camera) if options.camera else None
        layout = RawLayout.from_file(options.layout) if options.layout else None
        values = [int(value) for value in (options.foreground or "").split(",") if value.strip()]
        names = [name.strip() for name in (options.classes or "").split(",") if name.strip()]
        same = ("labels", "masks", "crop", "own_colours", "skip_broken", "lens_corrections")
        given = {name: getattr(options, name) for name in same}
        given |= {"foreground": values or None, "classes": names or None}
        return RawFolder(root, camera=camera, layout=layout, **given)
    task = {"task": options.known_task} if "Drone" in name else {}
    if not name.startswith("Synthetic"):
        kind = datasets.RawDrone if task else datasets.RawMicroscopy
        return kind(root, "all", iso, **task)
    kind = datasets.SyntheticDrone if task else datasets.SyntheticMicroscopy
    # The twins' own seed is fixed, so that runs of different seeds are about the same images.
    sizes = {"size": options.image_size, "n": options.n_images}
    return kind(intensity=iso, **task, **{n: v for n, v in sizes.items() if v is not None})


def task_of(options: Options, data: RawDataset) -> str:
    """Return the task that the options say, else the labels; a DatasetError where they could be two."""
    if options.known_task != "auto":
        return options.known_task
    # Folders called 0 and 1 are classes; a column of numbers is a measurement.
    if not options.labels or not all(map(is_number, data.classes)):
        return "classification"
    if all(re.fullmatch(r"[+-]?\d+", name) for name in data.classes):
        reason = "the labels are whole numbers, which can be classes or measurements"
        raise DatasetError(options.labels, reason, "Say which: --task classification or regression")
    return "regression"
