"""Models, loop, evaluation and scores, on data that a few steps can learn."""

import contextlib
import copy
import os
import random
import sys
from functools import partial

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import requests
import torch
import torchvision
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import f1_score, jaccard_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics.classification import MulticlassJaccardIndex

from r2l import progress
from r2l.datasets import Frames, SyntheticMicroscopy
from r2l.files import R2LError
from r2l.isp import StaticISP
from r2l.training import (
    CLASSIFIERS,
    SEGMENTERS,
    RawToLogits,
    channel_statistics,
    fit,
    make_classifier,
    make_regressor,
    make_segmenter,
    networks,
    predict,
    scores,
    seeded,
    target_statistics,
)
from r2l.training.metrics import TASKS, _entropy_dice, per_class
from r2l.training.models import describe_model, make_described
from r2l.training.saving import load_model, save_model


class Shades(Dataset):
    """Noise whose brightness is the class; as images, or as raw frames."""

    def __init__(self, n=48, key="image", meta=True):
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(n) % 3
        noise = torch.rand(n, 3 if key == "image" else 1, 16, 16, generator=generator)
        self.frames = 0.3 * noise + 0.3 * self.labels[:, None, None, None]
        self.key, self.meta = key, meta

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        item = {self.key: self.frames[i], "label": int(self.labels[i])}
        return {**item, "meta": {"group": i // 4, "pipeline": "dark"}} if self.meta else item


class Grey(nn.Module):
    """A processor with one parameter: raw (B, 1, H, W) to RGB."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, raw):
        return (self.gain * raw).expand(-1, 3, -1, -1)


fit_once = partial(fit, epochs=1, progress=False)


def small():
    return make_classifier("SmallResNet", 3, (0.5,) * 3, (0.3,) * 3)


@pytest.fixture(scope="module")
def trained():
    return fit(small, Shades(), validation=Shades(), epochs=6, batch_size=12, progress=False)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", [*CLASSIFIERS, "mobilenet_v3_small", "squeezenet1_0", "timm:test_resnet"])
def test_classifiers_map_rgb_to_logits_of_any_tile_size(name):
    model = make_classifier(name, 9).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 9)
        assert model(torch.rand(1, 3, 64, 48)).shape == (1, 9)


def test_normalisation_is_part_of_the_model_and_exact():
    images = torch.rand(20, 3, 8, 8) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1) + 0.2
    model = make_classifier("SmallResNet", 2, *channel_statistics(images))
    std, mean = torch.std_mean(model.normalize(images), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)
    assert "normalize.mean" in model.state_dict()
    mean, std = channel_statistics(torch.full((2, 3, 4, 4), 0.25))
    assert mean == (0.25,) * 3
    assert min(std) > 0, "a constant channel can be normalised too"


def test_fit_learns_and_writes_its_history(trained):
    history = trained.history
    assert list(history.index) == list(range(6))
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert history["val_accuracy"].iloc[-1] > 0.9
    assert not trained.training
    whole = predict(trained, Shades())["loss"].mean()
    assert history["val_loss"].iloc[-1] == pytest.approx(whole, rel=1e-4), "of the whole set"


def test_same_seed_same_weights_whatever_was_drawn_before(trained):
    torch.rand(17)
    again = fit(small, Shades(), validation=Shades(), epochs=6, batch_size=12, progress=False)
    assert same_weights(trained, again)
    other = fit(small, Shades(), epochs=1, batch_size=12, seed=1, progress=False)
    assert not same_weights(trained, other)


def test_fit_leaves_generators_model_and_processor_alone():
    model, processor = small(), Grey()
    before = copy.deepcopy(model), copy.deepcopy(processor)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    result = fit_once(model, Shades(key="raw"), processor=processor)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    assert same_weights(model, before[0])
    assert same_weights(processor, before[1])
    assert not same_weights(result.model, model)
    assert result.processor.gain != processor.gain, "a processor that asks for gradients is trained"
    frozen = fit_once(small, Shades(key="raw"), processor=processor.requires_grad_(False))
    assert frozen.processor.gain == processor.gain
    with contextlib.suppress(OSError), seeded(3):
        torch.rand(1)
        raise OSError
    assert torch.equal(states[0], torch.get_rng_state()), "even after an error"


def test_fit_is_silent_and_writes_nothing(capfd, tmp_path, tmp_path_factory, monkeypatch, recwarn):
    srun = tmp_path_factory.mktemp("slurm") / "srun"  # as on a cluster, which Lightning remarks
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    predict(fit_once(small, Shades()), Shades())
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not list(tmp_path.iterdir())


def test_progress_counts_epochs_and_a_last_batch_of_one_image_stops_nothing(capfd):
    assert len(fit(small, Shades(13), epochs=2, batch_size=12, progress=True).history) == 2
    assert "/2" in capfd.readouterr().err


def test_in_a_notebook_the_bar_is_one_output_that_is_replaced(monkeypatch, capfd):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown[-1] = content["text/plain"]

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    with progress.progress_bar(total=3, desc="steps", mininterval=0) as bar:
        for _ in range(3):
            bar.update()
    (text,) = shown
    assert "steps: 100%" in text
    assert "3/3" in text
    assert capfd.readouterr() == ("", "")


def test_evaluation_has_one_row_an_image_and_domain(trained):
    data = Shades()
    table = predict(trained, {"a": data, "b": Subset(data, [5, 2, 40])})
    assert " ".join(table.columns) == "image group label prediction correct p_true loss pipeline"
    assert table["pipeline"].value_counts().to_dict() == {"a": 48, "b": 3}
    part = table[table["pipeline"] == "b"].set_index("image")
    assert list(part.index) == [5, 2, 40], "a subset keeps the identity of its images"
    whole = table[table["pipeline"] == "a"].set_index("image").loc[part.index]
    pd.testing.assert_frame_equal(part.drop(columns="pipeline"), whole.drop(columns="pipeline"), rtol=1e-4)
    with torch.no_grad():
        logits = trained(data.frames)
    np.testing.assert_array_equal(table["prediction"][:48], logits.argmax(1))
    np.testing.assert_allclose(np.exp(-table["loss"]), table["p_true"], rtol=1e-5)
    np.testing.assert_array_equal(table["correct"], table["prediction"] == table["label"])


def test_evaluation_reads_the_domain_from_meta_and_keeps_the_order_of_the_data(trained):
    shuffled = DataLoader(Shades(), batch_size=7, shuffle=True)
    table = predict(trained, shuffled)
    assert (table["pipeline"] == "dark").all()
    assert list(table["image"]) == list(range(48))
    np.testing.assert_array_equal(table["group"], np.arange(48) // 4)
    table = predict(trained, {"a": Shades(meta=False)})
    np.testing.assert_array_equal(table["group"], table["image"], "each image is its own")


def test_evaluation_leaves_the_model_and_the_generators_as_they_are():
    model = small()
    before = torch.get_rng_state()
    running = model.network[1].running_mean.clone()
    predict(model, Shades())
    assert model.training
    assert torch.equal(running, model.network[1].running_mean)
    assert torch.equal(before, torch.get_rng_state())


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 4, (90, 2)), columns=["label", "prediction"])
    table["pipeline"] = np.repeat(["a", "b", "without 3"], [40, 30, 20])
    table.loc[70:, "label"] %= 3
    got = scores(table, 4)
    for name, part in table.groupby("pipeline"):
        y, p = part["label"], part["prediction"]
        assert got.loc[name, "accuracy"] == pytest.approx((y == p).mean())
        want = sklearn_metrics.balanced_accuracy_score(y, p)
        assert got.loc[name, "balanced_accuracy"] == pytest.approx(want)
        assert got.loc[name, "macro_f1"] == pytest.approx(f1_score(y, p, average="macro"))
        assert got.loc[name, "images"] == len(part)


def test_recall_is_of_the_true_class_and_precision_of_the_answers():
    """Three images of class a, of which one is called a; one of class b, called b; one b called a."""
    table = pd.DataFrame({"label": [0, 0, 0, 1, 1], "prediction": [0, 1, 1, 1, 0]})
    got = per_class(table, ["a", "b", "c"])
    assert got["recall"].tolist()[:2] == [pytest.approx(1 / 3), 0.5]
    assert got["precision"].tolist()[:2] == [0.5, pytest.approx(1 / 3)]
    assert got["f1"].tolist() == [0.4, 0.4, 0.0]
    assert got["images"].tolist() == [3, 2, 0]
    assert got.loc["c"].isna().tolist() == [True, True, False, False]


class Squares(Dataset):
    """A bright square on noise, its mask, and (as a number) its brightness in thousands; some are empty."""

    def __init__(self, n=24, size=32, mask_shape=()):
        generator = torch.Generator().manual_seed(2)
        self.masks = torch.zeros(n, *mask_shape, size, size, dtype=torch.long)
        for i in range(n):
            row, column = torch.randint(0, size - 12, (2,), generator=generator)
            if i % 4:
                self.masks[i, ..., row : row + 12, column : column + 12] = 1
        noise = 0.3 * torch.rand(n, 3, size, size, generator=generator)
        self.images = noise + 0.6 * self.masks.reshape(n, 1, size, size)
        self.numbers = 1000 * self.images.mean((1, 2, 3)) + 5000

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        mask, image = self.masks[i], self.images[i]
        return {"image": image, "mask": mask, "target": self.numbers[i].item(), "meta": {"group": i // 2}}


class Threshold(nn.Module):
    """A segmenter of one weight, whose answers are known."""

    def __init__(self, level=0.45):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, image):
        return 20 * (image.mean(1, keepdim=True) - self.level)


@pytest.mark.slow
def test_a_segmenter_learns_masks():
    data = Squares()
    settings = {"task": "segmentation", "validation": data, "epochs": 5, "batch_size": 6}
    module = fit(lambda: make_segmenter("unet", "resnet18"), data, lr=3e-3, progress=False, **settings)
    assert {"train_loss", "train_iou", "val_loss", "val_iou"} <= set(module.history)
    assert module.history["val_iou"].iloc[-1] > 0.8 > module.history["train_iou"].iloc[0]
    table = predict(module, {"a": data})
    assert scores(table).loc["a", "iou"] == pytest.approx(module.history["val_iou"].iloc[-1])
    assert module.history["val_loss"].iloc[-1] == pytest.approx(table["loss"].mean(), rel=1e-4)


@pytest.mark.parametrize("mask_shape", [(), (1,)])
def test_answers_of_a_segmentation_are_counts_of_pixels(mask_shape):
    data, model = Squares(mask_shape=mask_shape), Threshold(0.2)
    table = predict(model, {"a": data, "b": Subset(data, [0, 1])}, task="segmentation")
    columns = "image group iou intersection union empty false_positives pixels loss pipeline"
    assert " ".join(table.columns) == columns
    assert (table["pixels"] == 32 * 32).all()
    found = (data.images.mean(1) > 0.2).numpy()
    there = data.masks.reshape(24, 32, 32).numpy() > 0
    a = table[table["pipeline"] == "a"]
    np.testing.assert_array_equal(a["false_positives"], (found & ~there).sum((1, 2)))
    np.testing.assert_array_equal(a["empty"], np.arange(24) % 4 == 0)
    filled = a[~a["empty"]]
    each = [jaccard_score(there[i].ravel(), found[i].ravel()) for i in filled["image"]]
    assert filled["iou"].tolist() == pytest.approx(each)
    got = scores(table)
    assert got.loc["a", "iou"] == pytest.approx(jaccard_score(there.ravel(), found.ravel()))
    assert got.loc["a", "dice"] == pytest.approx(f1_score(there.ravel(), found.ravel()))
    assert got.loc["a", "iou"] != pytest.approx(a["iou"].mean(), abs=0.01), "no mean of images"
    assert got.loc["a", "empty"] == 6
    assert got.loc["a", "false_positives_on_empty"] == found[::4].sum() > 0
    assert got["images"].tolist() == [24, 2]


def test_an_empty_tile_left_alone_is_right_and_one_that_is_not_is_wrong():
    data = {"a": Subset(Squares(), [0])}
    right, noisy = (predict(Threshold(level), data, task="segmentation") for level in (0.9, 0.1))
    assert right["iou"].item() == 1
    assert np.isnan(scores(right).loc["a", "iou"])
    assert noisy["iou"].item() == 0
    assert noisy["false_positives"].item() == noisy["union"].item() > 800


def test_iou_in_the_history_is_that_of_the_data_and_not_a_mean_of_batches():
    data = Squares()
    train = partial(fit_once, Threshold(0.2), data, validation=data, task="segmentation", lr=1e-12)
    ious = [train(batch_size=size).history["val_iou"][0] for size in (1, 5, 24)]
    assert ious == pytest.approx([ious[0]] * 3, rel=1e-6)
    found, there = data.images.mean(1) > 0.2, data.masks > 0
    assert ious[0] == pytest.approx(jaccard_score(there.flatten(), found.flatten()), rel=1e-5)


def test_the_loss_of_masks_agrees_with_its_formula_image_by_image():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, 7, generator=generator)
    masks = (torch.rand(3, 1, 5, 7, generator=generator) > 0.5).float()
    masks[2] = 0
    p = logits.sigmoid()
    entropy = -(masks * p.log() + (1 - masks) * (1 - p).log()).mean((1, 2, 3))
    dice = 1 - 2 * (p * masks).sum((1, 2, 3)) / (p + masks).sum((1, 2, 3))
    dice[2] = 0  # nothing there
    torch.testing.assert_close(_entropy_dice(logits, masks, reduction="none"), entropy + dice)
    torch.testing.assert_close(_entropy_dice(logits, masks), (entropy + dice).mean())


def test_the_loss_of_several_classes_is_cross_entropy_and_dice_of_those_that_are_there():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 3, (4, 1, 8, 8), generator=generator).double()
    masks[1] = 2
    shares, expected = logits.softmax(1).numpy(), []
    for image, mask in zip(shares, masks[:, 0].numpy(), strict=True):
        entropy = -np.mean([np.log(image[c][mask == c]).sum() for c in range(3)]) * 3 / 64
        there = [c for c in range(3) if (mask == c).any()]
        pairs = [(image[c], mask == c) for c in there]
        dice = sum(1 - 2 * (one * other).sum() / (one.sum() + other.sum()) for one, other in pairs)
        expected.append(entropy + dice / 3)
    found = _entropy_dice(logits, masks, reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    inside = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(partial(_entropy_dice, masks=masks), (inside,))


def test_scores_of_several_classes_are_those_of_libraries():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (6, 1, 8, 8), generator=generator) % 3  # none of class 3
    logits = 2 * torch.randn(6, 4, 8, 8, generator=generator) + 2 * F.one_hot(masks[:, 0], 4).movedim(-1, 1)
    logits[:, 3] = -99
    answers = TASKS["segmentation"].answers(logits, masks.float())
    there, found = masks.numpy().ravel(), logits.argmax(1).numpy().ravel()
    table = pd.DataFrame({k: v.numpy() for k, v in answers.items()}).assign(pipeline="a")
    each = jaccard_score(there, found, labels=range(3), average=None)
    row = scores(table).loc["a"]
    meter = MulticlassJaccardIndex(4)
    assert row["iou"] == pytest.approx(meter(logits, masks[:, 0]).item())
    assert row["pixel_accuracy"] == pytest.approx((there == found).mean())
    ious = per_class(table, ["w", "x", "y", "z"])["iou"].to_numpy()
    np.testing.assert_allclose(ious, [*each, np.nan], rtol=1e-6)
    singly = [meter(one[None], mask).item() for one, mask in zip(logits, masks, strict=True)]
    np.testing.assert_allclose(table["iou"], singly, rtol=1e-5)


def test_more_classes_than_the_model_has_are_told_and_fractions_are_no_classes():
    module = RawToLogits(nn.Conv2d(3, 1, 1), task="segmentation")
    for value, words in ((2.0, "2 classes apart.*a label 2"), (0.5, "expected numbers of classes")):
        batch = {"image": torch.rand(2, 3, 8, 8), "mask": torch.full((2, 8, 8), value)}
        with pytest.raises(ValueError, match=words):
            module.predict_step(module.on_before_batch_transfer(batch))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_answer_each_pixel_of_any_size(name):
    model = make_segmenter(name, "resnet18").eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
        assert model(torch.rand(1, 3, 40, 70)).shape == (1, 1, 40, 70)
    assert list(dict(model.named_children())) == ["normalize", "network"]


def test_a_regressor_learns_numbers_in_their_own_units():
    data = Squares()
    mean, std = target_statistics(data.numbers)
    assert mean[0] == pytest.approx(data.numbers.mean().item())
    assert std[0] == pytest.approx(data.numbers.std(correction=0).item(), rel=1e-4)
    start = make_regressor("SmallResNet", 1, target_mean=mean, target_std=std)
    settings = {"task": "regression", "validation": data, "epochs": 12, "batch_size": 6, "lr": 5e-3}
    module = fit(start, data, **settings, progress=False)
    table = predict(module, {"a": data})
    assert list(table.columns) == ["image", "group", "target", "prediction", "loss", "pipeline"]
    np.testing.assert_allclose(table["target"], data.numbers)
    pair = table["target"].to_numpy(float), table["prediction"].to_numpy(float)
    np.testing.assert_allclose(table["loss"], (pair[1] - pair[0]) ** 2, rtol=1e-3, atol=1e-3)
    got = scores(table).loc["a"]
    assert got["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(*pair), rel=1e-5)
    assert got["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(*pair), rel=1e-5)
    assert got["r2"] == pytest.approx(sklearn_metrics.r2_score(*pair), rel=1e-4)
    assert got["r2"] > 0.5
    assert module.history["val_mae"].iloc[-1] == pytest.approx(got["mae"], rel=1e-4)


def test_several_numbers_an_image():
    class Pairs(Squares):
        def __getitem__(self, i):
            number = self.numbers[i] / 1000
            return {"image": self.images[i], "target": torch.stack([number, -2 * number])}

    module = fit_once(lambda: make_regressor("SmallResNet", 2), Pairs(), task="regression")
    table = predict(module, {"a": Pairs()})
    assert list(table)[2:6] == ["target_0", "target_1", "prediction_0", "prediction_1"]
    error = (table[["prediction_0", "prediction_1"]].to_numpy() - table.iloc[:, 2:4].to_numpy()) ** 2
    np.testing.assert_allclose(table["loss"], error.mean(1), rtol=1e-4)
    assert scores(table).loc["a", "rmse"] == pytest.approx(np.sqrt(error.mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"shape \(.*, 1\), but regression has targets.*make_regressor"):
        fit_once(lambda: make_regressor("SmallResNet", 1), Pairs(), task="regression")


def threes():
    many = Squares()
    many.masks = many.masks * 3
    return many


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make_classifier("ResNet19", 2),
            "from ResNet18, .*SmallResNet, .*timm:convnext_tiny.*module:f",
        ),
        (lambda: make_classifier("resnet18x", 2), "Did you mean .*resnet18"),
        (lambda: make_classifier("timm:nothing", 2), "unknown classifier"),
        (lambda: make_classifier("SmallResNet", 2, (0.5,) * 3, (0.0, 1, 1)), "positive"),
        (lambda: make_segmenter("vnet"), r"'vnet' \(did you mean unet\?\); choose from unet, unetplusplus"),
        (lambda: make_segmenter("unet", "resnet19"), r"'resnet19' \(did you mean resnet18\?\); choose from"),
        (lambda: make_segmenter("linknet", "mit_b0"), "does not go with"),
        (lambda: make_regressor("SmallResNet", 2, target_std=(1.0, 0.0)), "target_std has to be pos"),
        (lambda: make_regressor("SmallResNet", 2, target_mean=(1.0, 0.0, 2.0)), "3 numbers, expected 1 or 2"),
        (lambda: fit_once(small, Shades(), task="detection"), "choose from classification, regression"),
        (lambda: fit_once(small, Shades(), task="segmentation"), "with 'mask'.*task='classification'"),
        (lambda: fit_once(small, Squares(), task="segmentation"), "segmentation has targets.*make_segmenter"),
        (lambda: fit_once(Threshold(), threes(), task="segmentation"), "2 classes apart.*a label 3"),
        (lambda: fit_once(small, Shades(), output_norm="layer"), "'layer'; choose from none, batch"),
        (lambda: fit_once(small, Shades(0)), "0 images"),
        (lambda: predict(small(), {}), "nothing to predict"),
        (lambda: predict(small(), Shades(), precision="64-true"), "64-true' .*; choose from 32-true, 16-mix"),
        (lambda: predict(small(), Shades(), by="camera"), r"meta\['camera'\]"),
        (lambda: scores(pd.DataFrame({"label": [0], "prediction": [0], "pipeline": ["a"]})), "n_classes"),
        (lambda: scores(pd.DataFrame({"pipeline": ["a"]})), "no table of answers"),
    ],
)
def test_what_does_not_exist_or_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Normed(Grey):
    """A processor with running statistics and noise in training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, raw):
        return F.dropout(self.norm(super().forward(raw)), 0.1, self.training)


def test_frozen_parts_stay_to_the_bit_their_statistics_too():
    data, start, processor = Shades(key="raw"), small(), Normed()
    settings = {"processor": processor, "validation": data, "epochs": 2, "progress": False}

    def moved(part, **options):
        end = fit(start, data, **settings, **options)
        now = getattr(end, part).state_dict()
        before = (start if part == "model" else processor).state_dict()
        return {name for name in before if not torch.equal(now[name], before[name])}

    assert moved("processor") >= {"gain", "norm.weight", "norm.running_mean"}
    assert moved("processor", freeze_processor=True) == set()
    assert len(moved("model", freeze_processor=True)) > 10
    assert moved("model", freeze_model=True) == set()
    assert "gain" in moved("processor", freeze_model=True)
    assert all(p.requires_grad for p in (*start.parameters(), *processor.parameters()))
    with pytest.raises(ValueError, match="nothing to train"):
        fit(start, data, freeze_processor=True, freeze_model=True, **settings)
    evaluated = small().eval()
    end = fit_once(evaluated, Shades()).model
    assert not torch.equal(evaluated.network[1].running_mean, end.network[1].running_mean)
    assert not evaluated.training


def test_the_norm_behind_the_processor_is_the_same_for_all_of_them():
    data = Shades(key="raw")
    settings = {"epochs": 4, "progress": False, "freeze_model": True, "output_norm": "batch"}
    for processor, source in ((Grey(), data), (None, Shades())):
        module = fit(small, source, processor=processor, **settings)
        images = module.develop(source.frames)
        seen = module.norm(images).detach()
        assert isinstance(module.norm, nn.BatchNorm2d)
        assert seen.mean().abs() < abs(images.mean())
        torch.testing.assert_close(module(source.frames), module.model(module.norm(images)))
    plain = fit_once(small, Shades())
    assert isinstance(plain.norm, nn.Identity), "left out unless asked for"


def test_the_processor_works_in_full_precision_whatever_the_model_does():
    seen = []

    class Watch(Grey):
        def forward(self, raw):
            seen.append((super().forward(raw) @ torch.eye(16)).dtype)
            return super().forward(raw)

    fit_once(small, Shades(key="raw"), processor=Watch(), precision="bf16-mixed")
    assert set(seen) == {torch.float32}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Torch's folder of weights, empty, where there is no network."""

    def refuse(*arguments, **options):
        raise requests.ConnectionError("no way out")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def refused(words, make, *arguments):
    with pytest.raises(networks.PretrainedWeightsError, match=words):
        make(*arguments, pretrained=True)


def test_pretrained_weights_come_from_the_cache(cache):
    cached, known = cache / "resnet18-f37072fd.pth", torchvision.models.resnet18()
    resnet18 = make_classifier, "ResNet18", 4
    refused(f"(?s){cached}.*https://.*{cached.name}.*{cache}.*leave pretrained off", *resnet18)
    torch.save(known.state_dict(), cached)
    network = make_classifier("ResNet18", 4, pretrained=True).network
    assert torch.equal(network.layer4[1].conv2.weight, known.layer4[1].conv2.weight)
    assert network.fc.out_features == 4
    torch.save({"fc.bias": torch.zeros(3)}, cached)
    refused("holds no weights of ResNet18", *resnet18)
    cached.write_bytes(b"half")
    refused("Remove the file", *resnet18)


def test_pretrained_weights_of_other_networks_leave_the_last_layer(cache, monkeypatch):
    known, weights = torchvision.models.squeezenet1_1(), torchvision.models.SqueezeNet1_1_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: known.state_dict())
    (cache / weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]).touch()
    network = make_classifier("squeezenet1_1", 1000, pretrained=True).network
    assert torch.equal(network.features[0].weight, known.features[0].weight)
    assert not torch.equal(network.classifier[1].weight, known.classifier[1].weight)
    for name in ("inception_v3", "own_net:tiny", "SmallResNet"):
        with pytest.raises(ValueError, match="has no pretrained weights"):
            make_classifier(name, 4, pretrained=True)
    refused(r"timm/resnet18.*HF_HOME", make_classifier, "timm:resnet18", 4)


OWN_NET = """
from torch import nn
def tiny(n_outputs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, n_outputs))
def nothing(n_outputs):
    return 7
"""


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm:test_resnet", "own_net:tiny"])
def test_networks_of_others_and_ones_own_are_made_saved_and_loaded_where_they_are_trusted(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)  # another test's
    (tmp_path / "own_net.py").write_text(OWN_NET)
    description = describe_model(name, "classification", 3, (0.5,) * 3, (0.2,) * 3)
    model, images = make_described(description).eval(), torch.rand(2, 3, 32, 32)
    folder = save_model(description, model, tmp_path / "kept")
    if name == "own_net:tiny":
        with pytest.raises(R2LError, match=r"not run unasked.*\n.*trusted=\['own_net:tiny'\]"):
            load_model(folder)
        with pytest.raises(R2LError, match="not run unasked"):
            load_model(folder, trusted=["own_net:other"])
        with pytest.raises(ValueError, match="made a int"):
            make_classifier("own_net:nothing", 3)
        with pytest.raises(R2LError, match="no such network"):
            make_classifier("own_net:missing", 3)
    assert torch.equal(load_model(folder, trusted=["own_net:tiny"]).eval()(images), model(images))


def test_pretrained_encoders_come_from_the_cache(cache, monkeypatch):
    import segmentation_models_pytorch as smp
    from safetensors.torch import save_file

    kept = cache / "model.safetensors"
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *a, **o: str(kept) if kept.exists() else None
    )
    refused(r"smp-hub/resnet18.*HF_HOME", make_segmenter, "unet", "resnet18")
    known = smp.encoders.get_encoder("resnet18", weights=None)
    save_file(known.state_dict(), kept)
    encoder = make_segmenter("unet", "resnet18", pretrained=True).network.network.encoder
    assert torch.equal(encoder.conv1.weight, known.conv1.weight)
    kept.write_bytes(b"half")
    refused("can't be had", make_segmenter, "unet", "resnet18")


@pytest.mark.parametrize("developed", [False, True])
def test_batches_cut_out_of_memory_train_as_single_items_do(developed):
    frames = Frames.of(SyntheticMicroscopy(12, size=32), progress=False)
    isp = StaticISP(frames.camera)
    data = frames.seen_as(isp(frames.raw)) if developed else frames
    settings = {"processor": None if developed else isp, "epochs": 2, "batch_size": 5, "progress": False}
    make = partial(make_classifier, "SmallResNet", 9)
    one, other = (fit(make, d, validation=d, **settings) for d in (data, Subset(data, range(12))))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
        assert weight.is_contiguous()
    assert one.history.equals(other.history)
