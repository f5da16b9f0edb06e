"""Models, loop, evaluation and scores, on data that a few steps can learn."""

import contextlib
import copy
import random

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from r2l.training import (
    CLASSIFIERS,
    channel_statistics,
    confusion,
    evaluate,
    fit,
    make_classifier,
    quiet,
    scores,
    seeded,
)


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


def small():
    return make_classifier("SmallResNet", 3, (0.5,) * 3, (0.3,) * 3)


@pytest.fixture(scope="module")
def trained():
    return fit(small, Shades(), validation=Shades(), epochs=6, batch_size=12, progress=False)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_map_rgb_to_logits_of_any_tile_size(name):
    model = make_classifier(name, 9).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 9)
        assert model(torch.rand(1, 3, 64, 48)).shape == (1, 9)


def test_unknown_classifier_lists_those_that_exist():
    with pytest.raises(ValueError, match="ResNet18, ResNet34, ResNet50, SmallResNet"):
        make_classifier("ResNet19", 2)


def test_normalisation_is_part_of_the_model_and_exact():
    images = torch.rand(20, 3, 8, 8) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1) + 0.2
    model = make_classifier("SmallResNet", 2, *channel_statistics(images))
    std, mean = torch.std_mean(model.normalize(images), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)
    assert "normalize.mean" in model.state_dict()
    with pytest.raises(ValueError, match="positive"):
        make_classifier("SmallResNet", 2, (0.5,) * 3, (0.0, 1, 1))


def test_a_constant_channel_can_be_normalised():
    mean, std = channel_statistics(torch.full((2, 3, 4, 4), 0.25))
    assert mean == (0.25,) * 3
    assert min(std) > 0


def test_fit_learns_and_writes_its_history(trained):
    history = trained.history
    assert list(history.index) == list(range(6))
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert history["val_accuracy"].iloc[-1] > 0.9
    assert not trained.training


def test_validation_history_is_the_loss_of_the_whole_set(trained):
    table = evaluate(trained, Shades())
    assert trained.history["val_loss"].iloc[-1] == pytest.approx(table["loss"].mean(), rel=1e-4)


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
    result = fit(model, Shades(key="raw"), processor=processor, epochs=1, progress=False)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    assert same_weights(model, before[0])
    assert same_weights(processor, before[1])
    assert not same_weights(result.model, model)
    assert result.processor.gain != processor.gain, "a processor that asks for gradients is trained"


def test_a_frozen_processor_stays_as_it_is():
    processor = Grey().requires_grad_(False)
    result = fit(small, Shades(key="raw"), processor=processor, epochs=1, progress=False)
    assert result.processor.gain == processor.gain


def test_seeding_is_undone_even_after_an_error():
    before = torch.get_rng_state()
    with contextlib.suppress(OSError), seeded(3):
        torch.rand(1)
        raise OSError
    assert torch.equal(before, torch.get_rng_state())


def test_fit_is_silent_and_writes_nothing(capfd, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    fit(small, Shades(), epochs=1, progress=False)
    evaluate(fit(small, Shades(), epochs=1, progress=False), Shades())
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not list(tmp_path.iterdir())


def test_progress_counts_epochs(capfd):
    fit(small, Shades(), epochs=2, progress=True)
    assert "/2" in capfd.readouterr().err


def test_in_a_notebook_the_bar_is_one_output_that_is_replaced(monkeypatch, capfd):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown[-1] = content["text/plain"]

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setattr(quiet, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    with quiet.progress_bar(total=3, desc="steps", mininterval=0) as bar:
        for _ in range(3):
            bar.update()
    assert len(shown) == 1
    assert "steps: 100%" in shown[0]
    assert "3/3" in shown[0]
    assert capfd.readouterr() == ("", "")


def test_a_last_batch_of_one_image_does_not_stop_training():
    assert len(fit(small, Shades(13), epochs=1, batch_size=12, progress=False).history) == 1


def test_nothing_to_train_or_evaluate_is_said(trained):
    with pytest.raises(ValueError, match="0 images"):
        fit(small, Shades(0), progress=False)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(trained, {})
    with pytest.raises(ValueError, match="meta\\['camera'\\]"):
        evaluate(trained, Shades(), by="camera")


def test_evaluation_has_one_row_an_image_and_domain(trained):
    data = Shades()
    table = evaluate(trained, {"a": data, "b": Subset(data, [5, 2, 40])})
    assert list(table.columns) == [
        *("image", "group", "label", "prediction", "correct", "p_true", "loss", "pipeline")
    ]
    assert table["pipeline"].value_counts().to_dict() == {"a": 48, "b": 3}
    part = table[table["pipeline"] == "b"].set_index("image")
    assert list(part.index) == [5, 2, 40], "a subset keeps the identity of its images"
    whole = table[table["pipeline"] == "a"].set_index("image").loc[part.index]
    pd.testing.assert_frame_equal(
        part.drop(columns="pipeline"), whole.drop(columns="pipeline"), rtol=1e-4
    )
    with torch.no_grad():
        logits = trained(data.frames)
    np.testing.assert_array_equal(table["prediction"][:48], logits.argmax(1))
    np.testing.assert_allclose(np.exp(-table["loss"]), table["p_true"], rtol=1e-5)
    np.testing.assert_array_equal(table["correct"], table["prediction"] == table["label"])


def test_evaluation_reads_the_domain_from_meta_and_keeps_the_order_of_the_data(trained):
    shuffled = DataLoader(Shades(), batch_size=7, shuffle=True)
    table = evaluate(trained, shuffled)
    assert (table["pipeline"] == "dark").all()
    assert list(table["image"]) == list(range(48))
    np.testing.assert_array_equal(table["group"], np.arange(48) // 4)


def test_evaluation_without_meta_takes_every_image_as_a_group(trained):
    table = evaluate(trained, {"a": Shades(meta=False)})
    np.testing.assert_array_equal(table["group"], table["image"])


def test_evaluation_keeps_the_model_in_its_mode():
    model = small()
    running = model.network[1].running_mean.clone()
    evaluate(model, Shades())
    assert model.training
    assert torch.equal(running, model.network[1].running_mean)


def test_scores_agree_with_scikit_learn_and_confusion_has_true_classes_as_rows():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 4, (90, 2)), columns=["label", "prediction"])
    table["pipeline"] = np.repeat(["a", "b"], [60, 30])
    got = scores(table, 4)
    for name, part in table.groupby("pipeline"):
        y, p = part["label"], part["prediction"]
        assert got.loc[name, "accuracy"] == pytest.approx((y == p).mean())
        assert got.loc[name, "balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, p))
        assert got.loc[name, "macro_f1"] == pytest.approx(f1_score(y, p, average="macro"))
        assert got.loc[name, "images"] == len(part)
    counts = confusion(table, list("wxyz"))
    assert counts.loc["w", "z"] == ((table["label"] == 0) & (table["prediction"] == 3)).sum()
    assert counts.to_numpy().sum() == 90
