"""What `r2l data fetch` put below a root, written down, so that `verify` can say whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from r2l.files import atomic_path

NAME = "r2l_manifest.json"
# Numbers beyond all bounds, and nesting without end.
_TOO_MUCH = (OverflowError, RecursionError)


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
            ValueError: the file is damaged.
        """
        path = root / NAME
        try:
            values = json.loads(path.read_text("utf-8"))
            values["files"] = {k: (int(s), int(c)) for k, (s, c) in values["files"].items()}
            return cls(**values)._checked()
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError, AttributeError, *_TOO_MUCH) as error:
            raise ValueError(
                f"{path}: damaged ({error}).\nMove it away and run `r2l data fetch` again."
            ) from None

    def _checked(self) -> Manifest:
        """Return itself, if it is made of what a manifest is made of.

        Raises:
            TypeError, AttributeError: it isn't.
        """
        lists = [self.unfinished, *self.subsets.values()]
        texts = [*self.archives.values(), *(name for names in lists for name in names)]
        if not all(isinstance(names, list) for names in lists):
            raise TypeError("a list of names is none")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name is no text")
        return self

    def write(self, root: Path) -> None:
        """Write the record, whole or not at all."""
        with atomic_path(root / NAME) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1), "utf-8")

    def changed(self, root: Path, kind: str) -> list[str]:
        """Return the recorded files of a data set that are gone or of another size."""
        return [
            name
            for name, (size, _) in self.files.items()
            if name.startswith(f"{kind}/") and _size(root / name) != size
        ]

    def begin(self, root: Path, kind: str) -> None:
        """Write down that a whole data set is being fetched."""
        self.unfinished = sorted({*self.unfinished, kind})
        self.write(root)

    def finish(self, kind: str) -> None:
        """Note that all of a data set is there."""
        self.unfinished = [name for name in self.unfinished if name != kind]
        self.subsets = {k: v for k, v in self.subsets.items() if not k.startswith(f"{kind}/")}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
