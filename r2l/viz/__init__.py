"""Figures. Each function returns a matplotlib `Figure` and touches no global state of matplotlib.

In a notebook a figure shows itself as the last expression of a cell (after ``%matplotlib inline``);
``figure.savefig("name.png")`` writes it.
"""

from r2l.files import need_extra

need_extra("train", "matplotlib")

from r2l.viz.curves import plot_corruptions, plot_curves, plot_learning_curves, plot_scans
from r2l.viz.drift import (
    plot_adaptations,
    plot_attacks,
    plot_detection_rates,
    plot_effects,
    plot_landscape,
    plot_matrix,
    plot_shift,
    plot_tolerances,
)
from r2l.viz.pictures import (
    plot_attack,
    plot_flips,
    plot_gradients,
    plot_isp_change,
    plot_samples,
    plot_stages,
    plot_views,
)
from r2l.viz.raw import plot_learned, plot_levels, plot_sites, plot_transfer
from r2l.viz.style import with_alt
