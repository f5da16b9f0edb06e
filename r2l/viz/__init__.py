"""Figures. Each function returns a matplotlib `Figure` and touches no global state of matplotlib.

In a notebook a figure shows itself as the last expression of a cell (after ``%matplotlib inline``);
``figure.savefig("name.png")`` writes it.
"""

from r2l.viz.adjustment import plot_adaptations, plot_isp_change, plot_learning_curves
from r2l.viz.alarm import plot_alarm, plot_statistics
from r2l.viz.alt import Described, with_alt
from r2l.viz.forensics import (
    plot_attack,
    plot_attacks,
    plot_landscape,
    plot_scan,
    plot_scans,
    plot_tolerances,
)
from r2l.viz.lab import plot_curves
from r2l.viz.matrix import plot_flips, plot_matrix
from r2l.viz.pictures import plot_samples, plot_stages, plot_views
from r2l.viz.processing import plot_gradients
from r2l.viz.raw import colour_sites, plot_levels, plot_sites, plot_transfer
from r2l.viz.synthesis import plot_corruptions, plot_effects

__all__ = [
    "Described",
    "colour_sites",
    "plot_adaptations",
    "plot_alarm",
    "plot_attack",
    "plot_attacks",
    "plot_corruptions",
    "plot_curves",
    "plot_effects",
    "plot_flips",
    "plot_gradients",
    "plot_isp_change",
    "plot_landscape",
    "plot_learning_curves",
    "plot_levels",
    "plot_matrix",
    "plot_samples",
    "plot_scan",
    "plot_scans",
    "plot_sites",
    "plot_stages",
    "plot_statistics",
    "plot_tolerances",
    "plot_transfer",
    "plot_views",
    "with_alt",
]
