"""The train x test matrix: pairing, isolation of folds, and what the summary makes of it."""

import io
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from torch import nn
from tqdm import tqdm

from r2l import drift
from r2l.datasets import SyntheticDrone, SyntheticMicroscopy, develop_views
from r2l.datasets import frames as frames_module
from r2l.drift.corruption_benchmark import distances
from r2l.drift.matrix import mean_drops
from r2l.isp import StaticISP
from r2l.training import RawToLogits, group_folds, make_classifier, predict, seeded
from r2l.training import folds as folds_module
from r2l.viz import plot_corruptions
from tests.common import drawn, refused, unchanged

CODES = ("bi,s,me", "me,u,ga")
SETTINGS = {"n_splits": 2, "epochs": 1, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def views():
    return develop_views(SyntheticMicroscopy(24, 0, size=16), CODES, batch_size=10, progress=False)


def train_and_test(views, codes, **settings):
    """Fill a matrix in one go."""
    return drift.predict_matrix(drift.train_models(views, codes, **settings), views, codes, progress=False)


@pytest.fixture(scope="module")
def models(views):
    return drift.train_models(views, CODES, **SETTINGS)


@pytest.fixture(scope="module")
def results(views, models):
    return drift.predict_matrix(models, views, CODES, progress=False)


def test_views_are_what_the_isp_makes_of_each_frame(views):
    dataset = SyntheticMicroscopy(24, 0, size=16)
    isp = StaticISP.from_code("me,u,ga", dataset.camera)
    item = views.view("me,u,ga").subset([3, 23])[1]
    torch.testing.assert_close(item["image"], isp(dataset[23]["raw"][None])[0])
    assert item["label"] == dataset[23]["label"]
    assert item["meta"] == {"image": 23, "pipeline": "me,u,ga", **dataset[23]["meta"]}


def test_frames_are_developed_once_and_not_per_cell(monkeypatch):
    developed = []
    original = frames_module.develop_all

    def counted(raw, *arguments):
        developed.append(len(raw))
        return original(raw, *arguments)

    monkeypatch.setattr(frames_module, "develop_all", counted)
    dataset = SyntheticMicroscopy(24, 0, size=16)
    trained = drift.train_models(dataset, CODES, **SETTINGS)
    assert sum(developed) == 24
    drift.predict_matrix(trained, dataset, CODES, progress=False)
    assert sum(developed) == 2 * 24


def test_every_image_is_answered_once_in_every_cell_in_the_fold_that_holds_it_out(views, results):
    assert len(results) == 24 * 4
    assert not results.duplicated(["image", "train", "test", "seed"]).any()
    for number, fold in enumerate(group_folds(views.labels, views.groups, 2, 0)):
        assert set(results.loc[results["fold"] == number, "image"]) == set(fold.test)
    np.testing.assert_array_equal(results["label"], views.labels[results["image"]])
    np.testing.assert_array_equal(results["group"], views.groups[results["image"]])


def test_the_bar_of_answers_counts_images(views, monkeypatch):
    bars = []

    def kept(**options):
        bars.append(tqdm(file=io.StringIO(), **options))
        return bars[-1]

    monkeypatch.setattr(sys.modules["r2l.training.predict"], "progress_bar", kept)
    model = make_classifier("SmallResNet", 9)
    predict(model, {code: views.view(code) for code in CODES}, batch_size=10, progress=True)
    predict(model, views.view(CODES[0]).subset([1, 5, 7]), progress=True)
    trained = drift.Trained(RawToLogits(model), CODES[0], np.arange(5))
    drift.predict_matrix([trained, trained], views, CODES)
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(n, n, "image") for n in (48, 3, 20)]


def test_same_seed_same_table_and_models_in_order(views, results, models):
    pd.testing.assert_frame_equal(results, train_and_test(views, CODES, **SETTINGS))
    assert [(m.code, m.fold) for m in models] == [(c, f) for f in range(2) for c in CODES]


def test_models_see_their_fold_alone_and_share_their_start(views, monkeypatch):
    starts, seen, means = [], [], []
    original = folds_module.fit

    def factory(n_classes, mean, std):
        means.append(mean)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, n_classes))
        starts.append(network[1].weight.detach().clone())
        return network

    def spy(model, data, **settings):
        seen.append((data[0]["meta"]["pipeline"], list(data.indices)))
        return original(model, data, **settings)

    monkeypatch.setattr(folds_module, "fit", spy)
    drift.train_models(views, CODES, model=factory, **SETTINGS)
    assert torch.equal(starts[0], starts[1]), "two pipelines, one fold"
    assert not torch.equal(starts[0], starts[2]), "two folds"
    folds = group_folds(views.labels, views.groups, 2, 0)
    assert seen == [(code, fold.train.tolist()) for fold in folds for code in CODES]
    torch.testing.assert_close(torch.tensor(means[1]), views.images[CODES[1]][folds[0].train].mean((0, 2, 3)))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(folds_module, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert not multiprocessing.active_children()


def told(path, then=lambda: None):
    """What makes a network that draws in training, and writes by which processes it was made."""

    def make(n_classes, mean, std):
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        then()
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, n_classes))

    return make


def same(models, others):
    for one, other in zip(models, others, strict=True):
        assert (one.code, one.seed, one.fold) == (other.code, other.seed, other.fold)
        torch.testing.assert_close(one.module.state_dict(), other.module.state_dict(), rtol=0, atol=0)
        pd.testing.assert_frame_equal(one.module.history, other.module.history)


def test_models_trained_at_once_are_those_trained_one_after_the_other(views, two_cores, tmp_path):
    settings = {**SETTINGS, "epochs": 2, "augmentation": "weak", "seeds": (0, 1)}
    state = torch.get_rng_state()
    alone = drift.train_models(views, CODES, model=told(tmp_path / "1"), processes=1, **settings)
    both = drift.train_models(views, CODES, model=told(tmp_path / "2"), **settings)
    same(alone, both)
    assert torch.equal(torch.get_rng_state(), state)
    answers = drift.predict_matrix(both, views, CODES, progress=False)
    assert len(answers) == 2 * 24 * 4, "seeds are repetitions"
    pids = [(tmp_path / name).read_text().split() for name in "12"]
    assert set(pids[0]) == {str(os.getpid())}
    assert len(set(pids[1])) == 8 + 1, "a process for each, and this one, which reads"


def elsewhere(act):
    """What does something in another process than this one."""
    here = os.getpid()
    return lambda: act() if os.getpid() != here else None


def test_a_process_that_dies_costs_time_and_no_model(views, two_cores, tmp_path):
    die = elsewhere(lambda: os.kill(os.getpid(), signal.SIGKILL))
    models = drift.train_models(views, CODES, model=told(tmp_path / "1", die), **SETTINGS)
    same(models, drift.train_models(views, CODES, model=told(tmp_path / "2"), processes=1, **SETTINGS))


def test_an_error_in_a_process_arrives_as_it_is(views, two_cores, tmp_path, capfd):
    errors = []
    for processes in (1, 2):
        with pytest.raises(ValueError, match="is nan, not a number") as caught:
            drift.train_models(views, CODES, processes=processes, **{**SETTINGS, "lr": float("nan")})
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_ends_the_processes_too(views, two_cores, tmp_path):
    path, wait = tmp_path / "1", elsewhere(threading.Event().wait)

    def interrupt():
        while not path.exists() or len(path.read_text().split()) < 2:
            time.sleep(0.05)
        time.sleep(0.5)  # Python loses what comes in the moment of a fork
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        drift.train_models(views, CODES, model=told(path, wait), **SETTINGS)


def test_what_cannot_be_shared_is_trained_one_after_the_other(two_cores, monkeypatch):
    count = folds_module._processes
    assert [count({"epochs": 3}, 4), count({"epochs": 3, "callbacks": []}, 4), count({}, 1)] == [2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert count({}, 4) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert count({}, 4) == 2
    torch.set_num_threads(2)
    assert count({}, 4) == 1


def test_wrong_codes_and_models_are_named(views):
    few = SyntheticMicroscopy(4, 0, size=16)
    refused("ma,s,me", drift.train_models, views, ("bi,s,me", "ma,s,me"), **SETTINGS)
    refused("twice", develop_views, few, ("bi,s,me",) * 2, progress=False)
    refused("xx", develop_views, few, ("xx,s,me",), progress=False)
    stranger = drift.Trained(RawToLogits(make_classifier("SmallResNet", 9)), "ma,s,me", np.arange(4))
    refused("ma,s,me", drift.corruption_table, [stranger], views, progress=False)
    refused("no models", drift.corruption_table, [], views, progress=False)
    refused("no models", drift.predict_matrix, [], views)


def simulated(rates, n=200, seeds=(0,)):
    """Results of a matrix whose true accuracies are ``rates`` {(train, test): rate}."""
    rng, rows = np.random.default_rng(0), []
    frame = pd.DataFrame({"image": np.arange(n), "group": np.arange(n) // 5, "label": np.arange(n) % 4})
    for seed in seeds:
        luck = rng.random(n)  # the same for all cells: hard images are hard everywhere
        for (train, test), rate in rates.items():
            rows.append(frame.assign(train=train, test=test, seed=seed, correct=luck < rate))
    return pd.concat(rows, ignore_index=True)


def test_summary_finds_the_cell_that_differs_and_no_other():
    rates = {("a", "a"): 0.9, ("a", "b"): 0.7, ("b", "a"): 0.88, ("b", "b"): 0.88}
    table = simulated(rates)
    summary = drift.summarise(table)
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
    assert summary.totals.loc["diagonal", "estimate"] == pytest.approx((got["a", "a"] + got["b", "b"]) / 2)
    assert summary.worst_column == "b"
    assert summary.chance == {"majority": 0.25, "uniform": 0.25}


def test_order_is_that_of_the_results_and_pairing_makes_intervals_narrower():
    summary = drift.summarise(simulated({("z", "z"): 0.8, ("z", "m"): 0.78, ("z", "a"): 0.5}))
    off = summary.cells.iloc[1]
    assert off["difference_high"] - off["difference_low"] < 0.7 * (off["high"] - off["low"])
    assert list(summary.matrix().columns) == ["z", "m", "a"]
    assert list(summary.columns.index) == ["m", "a"]
    assert "worst column: a" in str(summary)


def test_tables_with_gaps_are_refused():
    table = simulated({("a", "a"): 0.8, ("a", "b"): 0.8})
    refused("lacks", drift.summarise, table.drop(index=3))
    refused("no diagonal", drift.summarise, table.assign(train="c"))
    refused("nothing to compare", drift.summarise, table[table["test"] == "a"])


@pytest.mark.parametrize(
    ("name", "metric", "drop", "worst"),
    [("microscopy", "accuracy", 0.0236, 0.50), ("drone", "IoU", 0.0461, 0.48)],
)
def test_published_matrices_give_the_published_drop(name, metric, drop, worst):
    matrix = drift.published_matrix(name)
    values = matrix.to_numpy()
    off = ~np.eye(12, dtype=bool)
    assert matrix.attrs["metric"] == metric
    assert "TMLR 2023" in matrix.attrs["source"]
    assert (np.diag(values)[:, None] - values)[off].mean() == pytest.approx(drop, abs=5e-5)
    assert values.min() == worst
    assert list(matrix.index) == list(matrix.columns)
    refused("microscopy, drone", drift.published_matrix, "tumours")


@pytest.mark.parametrize("name", ["microscopy", "drone"])
def test_what_the_order_of_stages_predicts_of_the_published_columns(name):
    # Drops in columns with ma and me, and among these with sharpening; p over all relabellings of columns.
    scores = drift.published_matrix(name)
    drops = (np.diag(scores)[:, None] - scores).sum() / 11
    codes = [code.split(",") for code in scores.columns]
    others, sharp = (np.array([code[i] in "ma me s" for code in codes]) for i in (0, 1))
    results = []
    for x, labels in ((drops, others), (drops[others], sharp[others])):
        picks = [list(pick) for pick in itertools.combinations(range(len(x)), labels.sum())]
        sums = np.array([x.to_numpy()[pick].sum() for pick in picks])
        results.append((np.mean(sums >= x[labels].sum() - 1e-9), x[labels].mean(), x[~labels].mean()))
    (p_demosaic, other, bilinear), (p_sharp, sharpened, unsharp) = results
    assert (other > bilinear) == (name == "microscopy"), "it fits one of the two"
    assert sharpened > unsharp
    assert min(p_demosaic, p_sharp) > 0.05, "and twelve columns do not tell it from chance"


def test_too_few_groups_are_told():
    table = simulated({(a, b): 0.9 - 0.4 * (a != b) for a in "abc" for b in "abc"})
    assert "few groups" not in str(drift.summarise(table))
    few = drift.summarise(table.assign(group=table["group"] % 6))
    assert "few groups, worth 6 of equal size" in str(few)
    assert "its luck is not in the intervals" in str(few)


def test_the_luck_of_training_is_in_the_intervals_of_several_seeds():
    table = simulated({(a, b): 0.8 for a in "ab" for b in "ab"}, seeds=(0, 1, 2))
    summary = drift.summarise(table)
    assert summary.n_seeds == 3
    assert "its luck" not in str(summary)
    lucky = table.assign(correct=table["correct"] & ((table["seed"] > 0) | (table["test"] == "a")))
    off = drift.summarise(lucky).cells.set_index(["train", "test"]).loc[("a", "b")]
    assert off["difference"] < -0.2
    assert not off["significant"], "two of three runs lose nothing"
    # Seeds that some cell lacks are no sample of seeds.
    assert drift.summarise(table[(table["seed"] < 2) | (table["test"] == "a")]).n_seeds == 1


def test_asking_from_memory_is_evaluating(views, models):
    trained = models[1]
    shuffled = drift.Trained(trained.module, trained.code, np.random.default_rng(0).permutation(24))
    got = drift.predict_matrix([shuffled], views, CODES, batch_size=7, progress=False)
    held_out = {code: views.view(code).subset(shuffled.test) for code in CODES}
    want = predict(trained.module, held_out, by="test")
    assert set(want.columns) <= set(got.columns)
    for name in ["image", "group", "label", "prediction", "correct", "test"]:
        assert list(got[name]) == list(want[name]), name
    np.testing.assert_allclose(got[["p_true", "loss"]], want[["p_true", "loss"]], rtol=1e-4)


def test_asking_leaves_the_model_as_it_was(views, models):
    module = models[0].module.train()
    with unchanged(module):
        drift.predict_matrix(models[:1], views, CODES, progress=False)
    module.eval()


# --- masks ---
class Threshold(nn.Module):
    """Calls a car what is brighter than a learned level."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, image):
        return 20 * (image.mean(1, keepdim=True) - self.level)


@pytest.fixture(scope="module")
def cars():
    return develop_views(SyntheticDrone(12, 0, size=32), CODES, progress=False)


def test_masks_are_kept_beside_the_views(cars):
    dataset = SyntheticDrone(12, 0, size=32)
    item = cars.view(CODES[1]).subset([2, 7])[1]
    assert torch.equal(item["mask"].long(), dataset[7]["mask"])
    assert "label" not in item


def test_cells_of_a_matrix_of_masks_are_data_set_ious(cars):
    table = train_and_test(cars, CODES, model=lambda n, mean, std: Threshold(), **SETTINGS)
    assert len(table) == 12 * 4
    assert (table["intersection"] <= table["union"]).all()
    trained = drift.Trained(RawToLogits(Threshold(), task="segmentation").eval(), CODES[0], np.arange(12))
    answers = drift.predict_matrix([trained], cars, CODES, progress=False)
    for code in CODES:
        found = cars.images[code].mean(1) > 0.5
        there = cars.truth.reshape(found.shape) > 0
        part = answers[answers["test"] == code]
        np.testing.assert_array_equal(part["union"], (found | there).flatten(1).sum(1))
        np.testing.assert_array_equal(part["pixels"], 32 * 32)
    summary = drift.summarise(table)
    sums = table.groupby(["train", "test"])[["intersection", "union"]].sum()
    cells = summary.cells.set_index(["train", "test"])["score"]
    for cell, row in sums.iterrows():
        assert cells[cell] == pytest.approx(row["intersection"] / row["union"])
    assert summary.metric == "IoU"
    assert summary.chance["all foreground"] == pytest.approx(cars.truth.float().mean().item())


def test_a_segmenter_is_made_by_name(cars):
    with seeded(0):
        table = train_and_test(cars, CODES[:1], model="unet/resnet18", **SETTINGS | {"batch_size": 6})
    assert len(table) == 12
    assert {"iou", "union", "false_positives"} <= set(table)


# --- corruptions and sensors ---
def test_corrupted_answers_are_those_to_corrupted_images(views, models):
    table = drift.corruption_table(models, views, ["shot_noise"], (2, 5), seed=3, progress=False)
    assert len(table) == 24 * 2 * 2
    part = table.query("train == 'me,u,ga' and severity == 5 and fold == 1").set_index("image")
    changed = drift.corrupt(views.images["me,u,ga"], "shot_noise", 5, seed=3)
    module = next(m.module for m in models if m.code == "me,u,ga" and m.fold == 1)
    with torch.no_grad():
        answers = module(changed[part.index.to_list()]).argmax(1)
    np.testing.assert_array_equal(part["prediction"], answers)
    clean = views.images["me,u,ga"]
    every = table.query("train == 'me,u,ga' and severity == 5")["distance"].mean()
    assert every == pytest.approx(float(distances(changed, clean).mean()), rel=1e-4)


def darker(image):
    return 0.7 * image


def test_own_corruptions_stand_beside_the_others_matched_to_the_other_pipelines(models, views):
    kinds = ["gaussian_noise", darker]
    table = drift.corruption_table(models, views, kinds, scale="matched", distance="l2", progress=False)
    assert set(table["kind"]) == {"gaussian_noise", "darker"}
    for (code, kind), part in table.groupby(["train", "kind"]):
        other = next(c for c in CODES if c != code)
        want = float(distances(views.images[other], views.images[code], "l2").mean())
        assert part["distance"].mean() == pytest.approx(want, rel=0.05), kind
        assert part["reached"].all()
    named = drift.corruption_table(models, views, {"dusk": darker}, progress=False)
    assert set(named["test"]) == {"published: dusk 3"}


def test_sensor_drift_goes_through_the_models_own_pipeline(views, models):
    table = drift.sensor_table(models, views, ["exposure"], (1, 5), progress=False)
    assert len(table) == 24 * 2 * 2
    far = table.groupby("severity")["distance"].mean()
    assert far[5] < far[1] < 60, "less PSNR, further away"
    refused("no raw frames", drift.sensor_table, models, replace(views, raw=None), progress=False)


def corrupted(rates, n=200):
    """Answers under corruptions with the luck of `simulated`: {(train, kind): rate}."""
    table = simulated(rates, n).rename(columns={"test": "kind"})
    return table.assign(test="published: " + table["kind"], scale="published", severity=3, distance=20.0)


def test_drops_are_measured_from_each_models_diagonal():
    results = simulated({("a", "a"): 0.9, ("a", "b"): 0.8, ("b", "a"): 0.7, ("b", "b"): 0.8})
    others = corrupted({("a", "dust"): 0.5, ("b", "dust"): 0.6, ("a", "fog"): 0.9, ("b", "fog"): 0.8})
    drops = drift.drop_table(results, others).set_index("kind")
    hits = {k: v["correct"].mean() for k, v in others.groupby(["train", "kind"])}
    own = {k: results.query("train == @k and test == @k")["correct"].mean() for k in "ab"}
    want = np.mean([own[k] - hits[k, "dust"] for k in "ab"])
    assert drops.loc["dust", "drop"] == pytest.approx(want)
    assert drops.loc["dust", "low"] < want < drops.loc["dust", "high"]
    assert drops.loc["fog", "drop"] == pytest.approx(0)


def test_benchmark_corruptions_tells_three_sizes(views, models, results):
    some = (*drift.PUBLISHED_CORRUPTIONS[:2], "brightness")
    fair = drift.benchmark_corruptions(models, views, some, results=results, progress=False)
    assert list(fair.table.index) == ["pipelines", "published", "image", "matched"]
    row = fair.table.loc["pipelines"]
    assert row["ratio"] == 1 or np.isnan(row["ratio"])
    assert row["drop"] == pytest.approx(drift.summarise(results).totals.loc["drop", "estimate"])
    assert fair.table.loc["matched", "distance"] == pytest.approx(row["distance"], abs=0.3)
    assert ("no ratio" if np.isnan(row["ratio"]) else "times that of") in str(fair)
    figure = drawn(plot_corruptions(drift.drop_table(results, fair.answers), drift.summarise(results), views))
    assert len(figure.axes[0].get_legend().get_texts()) == 4


def test_names_beside_marks_do_not_cover_one_another():
    n = np.tile(np.arange(6), 2)
    table = pd.DataFrame({"kind": [f"a long name {i}" for i in n], "severity": 1, "distance": 25 + 0.1 * n})
    table = table.assign(scale=["matched"] * 6 + ["sensor"] * 6, drop=0.1 + 0.001 * n)
    figure = drawn(plot_corruptions(table.assign(low=table["drop"] - 0.1, high=table["drop"] + 0.4)))
    names = [text for text in figure.axes[0].texts if text.get_text() in set(table["kind"])]
    boxes = [Text.get_window_extent(text) for text in names]
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_ratio_to_pipelines_is_the_known_one_and_unbounded_without_a_drop():
    pipelines = {("a", "a"): 0.9, ("a", "b"): 0.8, ("b", "a"): 0.8, ("b", "b"): 0.9}
    others = corrupted({("a", "dust"): 0.5, ("b", "dust"): 0.5}, n=2000)
    drops, ratios, name = mean_drops(simulated(pipelines, n=2000), others, [others], None, 0.95)
    assert name == "accuracy"
    assert drops.estimate == pytest.approx([0.1, 0.4], abs=0.03)
    assert ratios.low[1] < 4 < ratios.high[1] < ratios.low[1] + 2
    same = simulated(dict.fromkeys(pipelines, 0.9), n=2000)
    assert np.isnan(mean_drops(same, others, [others], None, 0.95)[1]).all()
