"""Draw docs/overview.png: one mosaic, what four pipelines make of it, and what a model answers."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from r2l.datasets import SyntheticMicroscopy
from r2l.isp import develop_all

CODES = ("bi,s,me", "bi,u,ga", "ma,s,me", "me,u,ga")


def main() -> None:
    """Write the picture beside this file."""
    dataset = SyntheticMicroscopy(60, seed=0, size=96)
    index = list(dataset.labels).index(dataset.classes.index("NGS"))
    raw = dataset[index]["raw"][None]
    with torch.no_grad():
        views = develop_all(raw, dataset.camera, CODES)
    tiles = {"raw mosaic": raw} | views
    figure = Figure(figsize=(12, 2.75), layout="constrained")
    for ax, (name, tile) in zip(figure.subplots(1, len(tiles)), tiles.items(), strict=True):
        picture = tile[0].permute(1, 2, 0).clamp(0, 1).numpy()
        ax.imshow(picture, cmap="gray", interpolation="nearest")
        ax.set_title(name, fontsize=13)
        ax.set_axis_off()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
