"""Figures. Each function returns a matplotlib `Figure` and touches no global state of matplotlib.

In a notebook a figure shows itself as the last expression of a cell (after ``%matplotlib inline``);
``figure.savefig("name.png")`` writes it.
"""

from r2l.files import need_extra, offer_late

need_extra("train", "matplotlib")

offer_late(
    __name__,
    {
        "r2l.viz.curves": [
            *("plot_corruptions", "plot_curves", "plot_learned", "plot_learning_curves", "plot_levels"),
            *("plot_scans", "plot_transfer"),
        ],
        "r2l.viz.drift": [
            *("plot_adaptations", "plot_attacks", "plot_detection_rates", "plot_effects"),
            *("plot_landscape", "plot_matrix", "plot_shift", "plot_tolerances"),
        ],
        "r2l.viz.pictures": [
            *("plot_attack", "plot_flips", "plot_gradients", "plot_isp_change", "plot_samples"),
            *("plot_sites", "plot_stages", "plot_views"),
        ],
        "r2l.viz.style": ["with_alt"],
    },
)
