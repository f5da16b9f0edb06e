"""The train x test matrix: pairing, isolation of folds, and what the summary makes of it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from r2l.datasets import SyntheticMicroscopy
from r2l.drift import develop_views, published_matrix, summarise, train_test_matrix
from r2l.drift import synthesis as synthesis_module
from r2l.isp import StaticISP
from r2l.training import group_folds
from r2l.training.tracking import track

CODES = ("bi,s,me", "me,u,ga")
SETTINGS = {"n_splits": 2, "epochs": 1, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def views():
    return develop_views(SyntheticMicroscopy(24, 0, size=16), CODES, batch_size=10, progress=False)


@pytest.fixture(scope="module")
def results(views):
    return train_test_matrix(views, CODES, **SETTINGS)


def test_views_are_what_the_isp_makes_of_each_frame(views):
    dataset = SyntheticMicroscopy(24, 0, size=16)
    isp = StaticISP.from_code("me,u,ga", dataset.camera)
    item = views.dataset("me,u,ga", [3, 23])[1]
    torch.testing.assert_close(item["image"], isp(dataset[23]["raw"][None])[0])
    assert item["label"] == dataset[23]["label"]
    assert item["meta"] == {
        "image": 23,
        "group": dataset[23]["meta"]["group"],
        "pipeline": "me,u,ga",
    }


def test_frames_are_developed_once_and_not_per_cell(monkeypatch):
    developed = []
    original = synthesis_module.develop_all

    def counted(raw, *arguments):
        developed.append(len(raw))
        return original(raw, *arguments)

    monkeypatch.setattr(synthesis_module, "develop_all", counted)
    train_test_matrix(SyntheticMicroscopy(24, 0, size=16), CODES, **SETTINGS)
    assert sum(developed) == 24


def test_every_image_is_answered_once_in_every_cell_in_the_fold_that_holds_it_out(views, results):
    assert len(results) == 24 * 4
    assert not results.duplicated(["image", "train", "test", "seed"]).any()
    folds = group_folds(views.labels, views.groups, 2, 0)
    for number, fold in enumerate(folds):
        assert set(results.loc[results["fold"] == number, "image"]) == set(fold.test)
    np.testing.assert_array_equal(results["label"], views.labels[results["image"]])
    np.testing.assert_array_equal(results["group"], views.groups[results["image"]])


def test_same_seed_same_table(views, results):
    pd.testing.assert_frame_equal(results, train_test_matrix(views, CODES, **SETTINGS))


def test_models_see_their_fold_alone_and_share_their_start(views):
    made = []

    def factory(n_classes, mean, std):
        made.append((mean, nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, n_classes))))
        return made[-1][1]

    starts, seen = [], []
    original = synthesis_module.fit

    def spy(model, data, **settings):
        def keep():
            network = model()
            starts.append(network[1].weight.detach().clone())
            return network

        seen.append((data.code, data.indices))
        return original(keep, data, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis_module, "fit", spy)
        train_test_matrix(views, CODES, model=factory, **SETTINGS)
    assert torch.equal(starts[0], starts[1]), "two pipelines, one fold"
    assert not torch.equal(starts[0], starts[2]), "two folds"
    folds = group_folds(views.labels, views.groups, 2, 0)
    for (code, indices), (fold, expected) in zip(
        seen, [(f, c) for f in folds for c in CODES], strict=True
    ):
        assert code == expected
        np.testing.assert_array_equal(indices, fold.train)
    fold = folds[0]
    expected = views.images[CODES[1]][fold.train].mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(made[1][0]), expected)


def test_seeds_are_repetitions(views):
    table = train_test_matrix(views, CODES, seeds=(0, 1), **SETTINGS)
    assert len(table) == 2 * 24 * 4
    assert summarise(table).n_seeds == 2


def test_models_are_logged_below_the_run(views, tmp_path):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    with track("drift", store=store) as run:
        table = train_test_matrix(views, CODES, run=run, **SETTINGS)
    nested = [
        r
        for r in MlflowClient(tracking_uri=store).search_runs([run.experiment_id])
        if r.data.tags.get("mlflow.parentRunId") == run.run_id
    ]
    assert len(nested) == 4
    one = next(
        r for r in nested if r.data.params == {"pipeline": "bi,s,me", "fold": "1", "seed": "0"}
    )
    cell = table.query("train == 'bi,s,me' and test == 'me,u,ga' and fold == 1")
    assert one.data.metrics["accuracy on me_u_ga"] == pytest.approx(cell["correct"].mean())
    assert "train_loss" in one.data.metrics


def test_wrong_codes_are_named(views):
    with pytest.raises(ValueError, match="ma,s,me"):
        train_test_matrix(views, ("bi,s,me", "ma,s,me"), **SETTINGS)
    with pytest.raises(ValueError, match="twice"):
        develop_views(SyntheticMicroscopy(4, 0, size=16), ("bi,s,me",) * 2, progress=False)
    with pytest.raises(ValueError, match="xx"):
        develop_views(SyntheticMicroscopy(4, 0, size=16), ("xx,s,me",), progress=False)


def simulated(rates, n=200, seeds=(0,), rng_seed=0):
    """Results of a matrix whose true accuracies are ``rates`` {(train, test): rate}."""
    rng = np.random.default_rng(rng_seed)
    rows = []
    for seed in seeds:
        luck = rng.random(n)  # the same for all cells: hard images are hard everywhere
        for (train, test), rate in rates.items():
            hit = luck < rate
            frame = {"image": np.arange(n), "group": np.arange(n) // 5, "label": np.arange(n) % 4}
            rows.append(pd.DataFrame(frame).assign(train=train, test=test, seed=seed, correct=hit))
    return pd.concat(rows, ignore_index=True)


def test_summary_finds_the_cell_that_differs_and_no_other():
    rates = {("a", "a"): 0.9, ("a", "b"): 0.7, ("b", "a"): 0.88, ("b", "b"): 0.88}
    table = simulated(rates)
    summary = summarise(table)
    cells = summary.cells.set_index(["train", "test"])
    assert cells["significant"].to_dict() == {cell: cell == ("a", "b") for cell in rates}
    got = table.groupby(["train", "test"])["correct"].mean()
    for cell in rates:
        assert cells.loc[cell, "score"] == pytest.approx(got[cell])
        assert cells.loc[cell, "low"] < got[cell] < cells.loc[cell, "high"]
    assert cells.loc[("a", "b"), "difference"] == pytest.approx(got["a", "b"] - got["a", "a"])
    assert cells.loc[("a", "b"), "difference_high"] < 0
    assert np.isnan(cells.loc[("a", "a"), "p"])
    drops = [got["a", "a"] - got["a", "b"], got["b", "b"] - got["b", "a"]]
    assert summary.totals.loc["drop", "estimate"] == pytest.approx(np.mean(drops))
    assert summary.totals.loc["drop without worst column", "estimate"] == pytest.approx(drops[1])
    assert summary.totals.loc["diagonal", "estimate"] == pytest.approx(
        (got["a", "a"] + got["b", "b"]) / 2
    )
    assert summary.worst_column == "b"
    assert summary.chance == {"majority": 0.25, "uniform": 0.25}


def test_pairing_makes_intervals_of_differences_narrower_than_those_of_scores():
    cells = summarise(simulated({("a", "a"): 0.8, ("a", "b"): 0.78})).cells
    off = cells[cells["train"] != cells["test"]].iloc[0]
    assert off["difference_high"] - off["difference_low"] < 0.7 * (off["high"] - off["low"])


def test_order_is_that_of_the_results_and_one_row_is_enough():
    summary = summarise(simulated({("z", "z"): 0.8, ("z", "m"): 0.8, ("z", "a"): 0.5}))
    assert list(summary.matrix().columns) == ["z", "m", "a"]
    assert list(summary.columns.index) == ["m", "a"]
    assert "drop without worst column: " in str(summary)
    assert "worst column: a" in str(summary)


def test_tables_with_gaps_are_refused():
    table = simulated({("a", "a"): 0.8, ("a", "b"): 0.8})
    with pytest.raises(ValueError, match="lacks"):
        summarise(table.drop(index=3))
    with pytest.raises(ValueError, match="no diagonal"):
        summarise(table.assign(train="c"))
    with pytest.raises(ValueError, match="nothing to compare"):
        summarise(table[table["test"] == "a"])


@pytest.mark.parametrize(
    ("name", "metric", "drop", "worst"),
    [("microscopy", "accuracy", 0.0236, 0.50), ("drone", "IoU", 0.0461, 0.48)],
)
def test_published_matrices_give_the_published_drop(name, metric, drop, worst):
    matrix = published_matrix(name)
    values = matrix.to_numpy()
    off = ~np.eye(12, dtype=bool)
    assert matrix.attrs["metric"] == metric
    assert "TMLR 2023" in matrix.attrs["source"]
    assert (np.diag(values)[:, None] - values)[off].mean() == pytest.approx(drop, abs=5e-5)
    assert values.min() == worst
    assert list(matrix.index) == list(matrix.columns)


def test_unknown_published_matrix_lists_those_that_exist():
    with pytest.raises(ValueError, match="microscopy, drone"):
        published_matrix("tumours")
