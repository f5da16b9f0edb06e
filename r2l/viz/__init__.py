"""Figures. Each function returns a matplotlib `Figure` and touches no global state of matplotlib.

In a notebook a figure shows itself as the last expression of a cell (after ``%matplotlib inline``);
``figure.savefig("name.png")`` writes it.
"""

from r2l.viz.matrix import plot_flips, plot_matrix
from r2l.viz.pictures import plot_samples, plot_stages, plot_views

__all__ = ["plot_flips", "plot_matrix", "plot_samples", "plot_stages", "plot_views"]
