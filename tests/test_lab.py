"""The virtual lab: what a training tracks, and what is drawn from it."""

import copy
import io
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image, ImageSequence
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset

from r2l.camera import MICROSCOPE
from r2l.datasets import SyntheticMicroscopy
from r2l.isp import ParametrizedISP, StaticISP
from r2l.training import fit, make_classifier
from r2l.training.export import SCALE, MetricTracker, StageTracker, _save_strip, animate, curves
from r2l.training.tracking import Records, resolve, track
from r2l.training.tracking.records import query
from r2l.viz import plot_curves
from tests.browser import free_port
from tests.conftest import invoke

pytestmark = pytest.mark.slow  # it trains

DATA = SyntheticMicroscopy(16, size=32)
EPOCHS = 2
STAGES = list(ParametrizedISP(MICROSCOPE).stages(DATA[0]["raw"][None]))


class Dropping(nn.Module):
    """A classifier with all that tracking could disturb: batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_classifier("SmallResNet", len(DATA.classes))

    def forward(self, image):
        return self.network(F.dropout2d(image, 0.2, self.training))


def train(*callbacks, **options):
    options |= {"processor": ParametrizedISP(MICROSCOPE), "validation": Subset(DATA, range(4))}
    options |= {"epochs": EPOCHS, "batch_size": 8, "progress": False}
    return fit(Dropping, DATA, callbacks=callbacks, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('lab')}/mlflow.db"


@pytest.fixture(scope="module")
def tracked(store):
    """A run with two folds whose stages were tracked after each epoch, and the last fold's module."""
    with track("lab", "tracked", store=store) as run:
        for fold in range(2):
            with run.nested(f"fold {fold}") as nested:
                what = ("images", "gradients", "tensors", "predictions")
                stages = StageTracker(nested, DATA, what, n_images=3, every_epoch=True)
                module = train(stages, MetricTracker(nested))
    return nested.run_id, module


def test_tracking_changes_nothing_in_training(tracked):
    _, module = tracked
    ours, plain = module.state_dict(), train().state_dict()
    assert any("running_mean" in name for name in plain)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in ours)


def test_tracking_gives_everything_back(store):
    module = train().train()
    module.model.network.eval()  # a part that is frozen, whatever the rest does
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    modes, before = [part.training for part in module.modules()], copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    with track("lab", "gives back", store=store) as run:
        StageTracker(run, DATA, ("images", "gradients", "predictions")).write(module, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    assert all((p.grad == 3).all() for p in module.parameters())
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_artefacts_have_their_published_names(store, tracked):
    files = set(Records(store).files(tracked[0]))
    epochs = [f"epoch_{epoch:03d}" for epoch in range(EPOCHS)]
    pictures = {f"{k}/{s}/{e}.png" for k in ("stages", "gradients") for s in STAGES for e in epochs}
    assert files == pictures | {f"tensors/{e}.npz" for e in epochs} | {f"predictions/{e}.csv" for e in epochs}


@pytest.fixture(scope="module")
def last(store):
    """A run with the stages of its last epoch and nothing else."""
    with track("lab", "last", store=store) as run:
        train(StageTracker(run, DATA))
    return run.run_id


def test_the_last_epoch_alone_unless_every_one_is_asked_for(store, last):
    assert Records(store).files(last) == sorted(f"stages/{s}/epoch_001.png" for s in STAGES)
    with track("lab", "ended early", store=store) as run:
        train(StageTracker(run, DATA), max_steps=1)
    assert Records(store).files(run.run_id) == sorted(f"stages/{s}/epoch_000.png" for s in STAGES)


def test_tensors_are_stages_and_gradients_of_each_image_by_itself(store, tracked):
    """Against autograd through the whole module, one image at a time."""
    run_id, module = tracked
    tensors = np.load(resolve(f"runs:/{run_id}/tensors/epoch_001.npz", store), allow_pickle=False)
    for index in range(3):
        item = DATA[index]
        raw = item["raw"][None].clone().requires_grad_()
        image = module.processor(raw)
        loss = F.cross_entropy(module.model(image), torch.tensor([item["label"]]))
        by_image, by_raw = torch.autograd.grad(loss, [image, raw])
        found = {name: torch.from_numpy(tensors[name][index]) for name in tensors}
        torch.testing.assert_close(found["stages/raw"], item["raw"])
        torch.testing.assert_close(found["stages/gamma"], image[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["gradients/gamma"], by_image[0], atol=1e-5, rtol=1e-3)
        assert (found["gradients/raw"] - by_raw[0]).abs().max() < 1e-3 * by_raw.abs().max()


def test_pictures_show_the_tensors(store, tracked):
    folder = resolve(f"runs:/{tracked[0]}", store)
    tensors = np.load(folder / "tensors" / "epoch_001.npz", allow_pickle=False)
    image = np.asarray(Image.open(folder / "stages/gamma/epoch_001.png")) / 255
    width = DATA.size
    expected = tensors["stages/gamma"][1].transpose(1, 2, 0).clip(0, 1)
    np.testing.assert_allclose(image[:, width + 2 : 2 * width + 2], expected, atol=0.5 / 255 + 1e-6)
    with Image.open(folder / "gradients/gamma/epoch_001.png") as picture:
        scale = float(picture.info[SCALE])
        drawn = (np.asarray(picture) / 127.5 - 1) * scale
    gradient = tensors["gradients/gamma"][0].transpose(1, 2, 0).clip(-scale, scale)
    np.testing.assert_allclose(drawn[:, :width], gradient, atol=0.51 / 127.5 * scale)
    assert np.abs(tensors["gradients/gamma"]).max() >= scale > 0


def test_a_local_store_is_listed_as_mlflow_lists_it(tracked, store, monkeypatch):
    """The list is read in SQL, within the seconds that mlflow takes to import."""
    records = Records(store)
    by_sql = records.table()
    assert "client" not in vars(records), "mlflow is not asked"
    monkeypatch.setattr("r2l.training.tracking.store.sqlite_path", lambda address: None)
    by_mlflow = records.table()
    assert len(by_sql) >= 3
    assert by_sql["train_loss"].notna().any()
    pd.testing.assert_frame_equal(by_sql, by_mlflow, check_like=True, check_dtype=False)


def test_predictions_are_the_models_answers(store, tracked):
    run_id, module = tracked
    table = pd.read_csv(resolve(f"runs:/{run_id}/predictions/epoch_001.csv", store))
    with torch.no_grad():
        logits = module(torch.stack([DATA[i]["raw"] for i in range(3)]))
    assert table["prediction"].tolist() == logits.argmax(1).tolist()
    assert table["label"].tolist() == DATA.labels[:3].tolist()


def test_a_pipeline_outside_the_module_is_looked_into(store):
    """Training on images that were developed once: the pipeline is told apart."""
    isp = StaticISP.from_code("bi,s,ga", MICROSCOPE)
    items = [DATA[i] for i in range(16)]
    developed = [{"image": isp(i["raw"][None])[0], "label": i["label"]} for i in items]
    with track("lab", "static", store=store) as run:
        tracker = StageTracker(run, DATA, ("images", "gradients", "predictions"), processor=isp)
        module = fit(Dropping, developed, epochs=1, batch_size=8, progress=False, callbacks=[tracker])
        StageTracker(run, developed, ("tensors",)).write(module, 5)
    files = Records(store).files(run.run_id)
    names = list(isp.stages(DATA[0]["raw"][None]))
    assert {f for f in files if f.startswith("gradients")} == {f"gradients/{n}/epoch_000.png" for n in names}
    assert "predictions/epoch_000.csv" in files


def test_nothing_to_track_is_refused(store):
    with pytest.raises(ValueError, match="nothing to track: 0 images"):
        StageTracker(None, DATA, n_images=0)


def test_metrics_of_each_epoch_and_none_where_nothing_was_validated(store):
    with track("lab", "metrics", store=store) as run:
        module = train(MetricTracker(run), validate_every=2)
    found = curves(run.run_id, store)["metrics"]
    np.testing.assert_allclose(found["train_loss"], module.history["train_loss"])
    assert found["val_loss"].isna().tolist() == [True, False]


def frames(path):
    with Image.open(path) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


@pytest.mark.parametrize("gradient", [False, True])
def test_a_gif_of_each_fold_with_a_frame_an_epoch(store, tracked, tmp_path, gradient):
    written = animate("tracked", "gamma", tmp_path / "out.gif", gradient=gradient, store=store)
    assert [path.name for path in written] == ["out_fold_0.gif", "out_fold_1.gif"]
    drawn = frames(written[1])
    assert len(drawn) == EPOCHS
    width = 3 * DATA.size + 2 * 2
    times = -(-480 // width)
    assert drawn[0].shape == (DATA.size * times + 22, width * times, 3)
    # Equal values have equal colours in all frames: the gap between the images does.
    gap = [frame[30:, DATA.size * times + 1] for frame in drawn]
    assert (gap[0] == gap[1]).all()
    kind = "gradients" if gradient else "stages"
    folder = resolve(f"runs:/{tracked[0]}/{kind}/gamma", store)
    with Image.open(folder / "epoch_001.png") as picture:
        source = np.asarray(picture.resize((width * times, DATA.size * times), Image.Resampling.NEAREST))
    if not gradient:
        assert np.abs(drawn[1][22:].astype(float) - source).mean() < 3, "a palette of 256"


def test_gradients_of_all_epochs_stand_on_one_scale(store, tmp_path):
    """A gradient of half the size is drawn half as far from grey."""
    with track("lab", "scales", store=store) as run:
        for epoch, size in enumerate((1.0, 0.5)):
            values = size * torch.tensor([-1.0, 1.0]).repeat_interleave(8).repeat(16, 1)
            with run.files() as folder:
                path = folder / f"gradients/raw/epoch_{epoch:03d}.png"
                path.parent.mkdir(parents=True)
                _save_strip(values[None, None], path, signed=True)
    (path,) = animate("scales", "raw", tmp_path / "g.gif", gradient=True, store=store)
    whole, half = (frame[22:].astype(float) for frame in frames(path))
    assert sorted(set(whole.ravel())) == [0, 255]
    np.testing.assert_allclose(sorted(set(half.ravel())), [64, 191], atol=1)


def test_curves_are_the_history_of_each_fold(store, tracked):
    found = curves("tracked", store)
    assert list(found) == ["fold 0", "fold 1"]
    for column, values in tracked[1].history.items():
        np.testing.assert_allclose(found["fold 1"][column], values)


def test_the_figure_holds_the_losses():
    tables = {f: pd.DataFrame({"train_loss": [2.0, 1.0], "val_loss": [3.0, 1 + f]}) for f in (0, 1)}
    ax = plot_curves(tables).axes[0]
    drawn = [line.get_ydata().tolist() for line in ax.lines]
    assert drawn == [[2, 1], [2, 1], [2, 1], [3, 1], [3, 2], [3, 1.5]]
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["training (mean of 2)", "validation (mean of 2)"]
    with pytest.raises(ValueError, match="no train_iou or val_iou; there are train_loss, val_loss"):
        plot_curves(tables, "iou")


def test_sql_finds_what_was_written_and_changes_nothing(store, tracked):
    where = f"key = 'val_loss' and run_uuid = '{tracked[0]}'"
    table = query(f"select value from latest_metrics where {where}", store)
    assert table["value"].tolist() == pytest.approx([tracked[1].history["val_loss"].iloc[-1]])
    for wrong in ("delete from runs", "select nothing from runs", "drop table runs"):
        with pytest.raises(ValueError, match="the main tables are runs"):
            query(wrong, store)
    assert query("select count(*) as n from runs", store)["n"].item() > 0


lab = partial(invoke, "lab")


def test_the_command_line_lists_asks_and_draws(store, tracked, tmp_path):
    listed = lab("runs", "--store", store)
    assert listed.exit_code == 0, listed.output
    assert tracked[0] in listed.output
    asked = lab("sql", "select name from runs where name like 'fold%'", "--csv", "--store", store)
    assert asked.output.split() == ["name", "fold", "0", "fold", "1"]
    out = ("-o", tmp_path / "d.gif", "--curves", tmp_path / "c.png")
    command = ("export", "tracked", "--gif", "demosaic", *out, "--store", store)
    drawn = lab(*command)
    assert drawn.exit_code == 0, drawn.output
    assert {p.name for p in tmp_path.iterdir()} == {"d_fold_0.gif", "d_fold_1.gif", "c.png"}
    (tmp_path / "d_fold_1.gif").write_bytes(b"mine")
    assert "c.png exists: --force replaces it, --curves names another" in lab(*command).stderr
    (tmp_path / "c.png").unlink()
    (tmp_path / "d_fold_0.gif").unlink()
    assert "d_fold_1.gif exists: --force replaces it, -o names another place" in lab(*command).stderr
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"mine"], "nothing is drawn"
    assert lab(*command, "--force").exit_code == 0
    with Image.open(tmp_path / "c.png") as picture:
        picture.verify()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "nobody", "--gif", "gamma"), "no run 'nobody' in .*there are: .*tracked"),
        (("export", "tracked", "--gif", "sharpen"), "no stages 'sharpen'; there are: .*demosaic"),
        (("export", "last", "--gif", "gamma", "--gradient"), "--track_processing_gradients"),
        (("export", "last", "--curves", "x.png"), "holds no train_loss"),
        (("export", "tracked"), "give --gif STAGE, --curves FILE"),
        (("sql", "selekt"), "syntax error"),
    ],
)
@pytest.mark.usefixtures("tracked", "last")
def test_mistakes_end_in_one_line(store, arguments, message):
    done = lab(*arguments, "--store", store)
    assert done.exit_code == 2
    assert re.search(f"^error: .*{message}", done.stderr, re.DOTALL)
    assert "Traceback" not in done.stderr


def test_a_store_that_does_not_exist_is_not_made(tmp_path):
    for arguments in ((), ("runs",), ("sql", "select 1"), ("export", "latest", "--gif", "gamma")):
        done = lab("--store", tmp_path / "none.db", *arguments)
        assert done.exit_code == 2
        assert "no store of runs at" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_page_opens_and_ctrl_c_ends_it(store, tracked):
    port = free_port()
    options = ["--store", store, "--port", str(port), "--no-browser"]
    command = [sys.executable, "-m", "r2l", "lab", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        line = io.TextIOWrapper(process.stdout).readline()
        assert f"http://127.0.0.1:{port}" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert b"MLflow" in page.read()
        in_use = lab(*options)
        assert in_use.exit_code == 2
        assert "choose another --port" in in_use.stderr
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == b""
    assert children
    assert not any(child.is_running() for child in children)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "nobody listens any more"
