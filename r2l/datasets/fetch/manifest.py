"""What `r2l data fetch` put below a root, written down, so that `verify` can say whether it is whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from r2l.files import R2LError, atomic_path

NAME = "r2l_manifest.json"
# What is no manifest; the last two are numbers beyond all bounds, and nesting without end.
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class ManifestError(R2LError, ValueError):
    """A record of what was fetched that is damaged."""


@dataclass
class Manifest:
    """Record of a root.

    Attributes:
        files: path below the root to size and CRC-32, as the archive says.
        archives: name of each archive that was unpacked to the source's checksum.
        subsets: "<data set>/raw_scaleNNN" to the stems of its images, where only some were fetched.
        unfinished: data sets whose fetching began and didn't end.
    """

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    subsets: dict[str, list[str]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Return the record of ``root``; an empty one if nothing was fetched into it.

        Raises:
            ManifestError: the file is damaged.
        """
        path = root / NAME
        try:
            values = json.loads(path.read_text("utf-8"))
            values["files"] = {k: (int(s), int(c)) for k, (s, c) in values["files"].items()}
            manifest = cls(**values)
            lists = [manifest.unfinished, *manifest.subsets.values()]
            texts = [*manifest.archives.values(), *(name for names in lists for name in names)]
            if not all(isinstance(names, list) for names in lists):
                raise TypeError("a list of names is none")
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a name is no text")
        except FileNotFoundError:
            return cls()
        except _DAMAGE as error:
            remedy = "Move it away and run `r2l data fetch` again"
            raise ManifestError(path, f"damaged ({error})", remedy) from None
        return manifest

    def write(self, root: Path) -> None:
        """Write the record, whole or not at all."""
        with atomic_path(root / NAME) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1), "utf-8")

    def files_of(self, kind: str) -> dict[str, tuple[int, int]]:
        """Return the part of ``files`` that is of one data set."""
        return {name: v for name, v in self.files.items() if name.startswith(f"{kind}/")}

    def is_whole(self, root: Path, kind: str) -> bool:
        """Tell whether all recorded files of a data set are there, of the recorded size."""
        files = ((root / name, size) for name, (size, _) in self.files_of(kind).items())
        # os.path says False to names that no system takes, as a damaged record may have them.
        return all(os.path.isfile(path) and os.path.getsize(path) == size for path, size in files)

    def begin(self, root: Path, kind: str) -> None:
        """Write down that a whole data set is being fetched."""
        self.unfinished = sorted({*self.unfinished, kind})
        self.write(root)

    def finish(self, kind: str) -> None:
        """Note that all of a data set is there."""
        self.unfinished = [name for name in self.unfinished if name != kind]
        self.subsets = {k: v for k, v in self.subsets.items() if not k.startswith(f"{kind}/")}
