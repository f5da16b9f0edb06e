"""The labelled set in memory: read once, developed once, a data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import Frames, RawDataset, SyntheticDrone, SyntheticMicroscopy, develop_views
from r2l.isp import HalfSizeRGB, StaticISP, save_isp
from r2l.training import RawToLogits, channel_statistics
from r2l.training.folds import image_batches


class Given(RawDataset):
    """Frames by hand, of sizes that may differ; counts how often one is read."""

    def __init__(self, *frames):
        self.frames, self.reads, self.camera = frames, 0, MICROSCOPE
        self.labels = self.groups = np.arange(len(frames))
        self.classes = tuple(map(str, self.labels))

    def read(self, index):
        self.reads += 1
        return {"raw": self.frames[index], "label": index}


@pytest.mark.parametrize("truth", [-1, 0.5, np.nan, *np.float32([[[-1]], [[0.5]], [[300]], [[np.nan]]])])
def test_a_truth_that_is_no_class_is_refused(monkeypatch, truth):
    key, value = "mask" if np.ndim(truth) else "label", np.max(truth)
    monkeypatch.setattr(Given, "read", lambda self, index: {"raw": self.frames[index], key: truth})
    with pytest.raises(ValueError, match=f"a {key} of {value:g}, expected the number of a class"):
        Frames.of(Given(torch.zeros(1, 1, 1)), progress=False)


def test_developed_images_are_the_isp_s_own_in_memory_and_in_a_file(tmp_path):
    data, isp = SyntheticMicroscopy(7, size=32), StaticISP.from_code("ma,u,me", MICROSCOPE)
    states = torch.get_rng_state()
    given = {"batch_size": 3, "progress": False}
    held = develop_views(data, {"mine": isp}, **given)
    filed = develop_views(data, {"mine": isp}, memory_limit=100, folder=tmp_path, **given)
    assert torch.equal(states, torch.get_rng_state())
    assert not list(tmp_path.iterdir()), "the file has no name to be left behind"
    view, filed = held.view("mine"), filed.view("mine")
    for i in range(7):
        torch.testing.assert_close(view[i]["image"], isp(data[i]["raw"][None])[0])
        assert torch.equal(view[i]["image"], filed[i]["image"])
        assert torch.equal(held[i]["raw"], data[i]["raw"])
        assert view[i]["label"] == data[i]["label"]
        assert view[i]["meta"] == {"image": i, "pipeline": "mine", **data[i]["meta"]}
        assert "raw" not in view[i]


def test_a_pipeline_is_a_code_a_module_a_function_or_a_folder(tmp_path):
    data = Frames.of(SyntheticMicroscopy(3, size=16), progress=False)
    isp = StaticISP.from_code("bi,s,ga", MICROSCOPE)
    folder = save_isp(isp, tmp_path / "saved")
    pipelines = {"code": "bi,s,ga", "module": isp, "folder": folder, "function": isp.forward}
    views = develop_views(data, pipelines, progress=False)
    assert list(views.images) == list(pipelines)
    for images in views.images.values():
        assert torch.equal(images, views.images["code"])


def test_each_frame_is_read_once_however_often_it_is_asked_for():
    data = Given(*(torch.full((1, 8, 8), 0.1 * i) for i in range(5)))
    held = Frames.of(data, progress=False)
    for _ in range(3):
        assert [held[i]["raw"][0, 0, 0].item() for i in range(5)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert data.reads == 5


def test_smaller_images_are_enlarged_where_there_are_masks():
    drone = SyntheticDrone(3, size=32)
    held = develop_views(drone, {"half": HalfSizeRGB(DRONE)}, progress=False).view("half")
    assert held.shape == (32, 32)
    assert torch.equal(held[1]["mask"].long(), drone[1]["mask"])
    # As the loop does it where the processor is trained.
    module = RawToLogits(torch.nn.Conv2d(3, 1, 1), HalfSizeRGB(DRONE), task="segmentation")
    raw = torch.stack([drone[i]["raw"] for i in range(3)])
    torch.testing.assert_close(held.images["half"], module.develop(raw))
    assert module(raw).shape == (3, 1, 32, 32)
    plain = RawToLogits(torch.nn.Identity(), HalfSizeRGB(DRONE))
    assert plain(raw).shape == (3, 3, 16, 16), "other tasks see it as it is"
    cells = SyntheticMicroscopy(2, size=32)
    small = develop_views(cells, {"half": HalfSizeRGB(MICROSCOPE)}, progress=False).view("half")
    assert small.shape == (16, 16)


def test_frames_of_several_sizes_and_none_at_all_are_errors():
    with pytest.raises(ValueError, match="8 x 8 and 8 x 10"):
        Frames.of(Given(*(torch.zeros(1, 8, size) for size in (8, 8, 10))), progress=False)
    with pytest.raises(ValueError, match="no frames"):
        Frames.of(Given(), progress=False)
    with pytest.raises(ValueError, match="0 frames"):
        develop_views(Given(), progress=False)
    frames = Frames.of(Given(torch.zeros(1, 8, 8)), progress=False)
    with pytest.raises(ValueError, match="2 frames, but truth of 1"):
        frames.seen_as(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="1 of 1 images have none"):
        replace(frames, groups=np.array([np.nan]))
    views = develop_views(frames, ["bi,s,ga", "bi,s,me"], progress=False)
    with pytest.raises(ValueError, match="hold developed images only"):
        develop_views(views.view("bi,s,ga"), progress=False)


def test_labels_and_names_follow_where_they_are_not_given():
    frames = Frames(torch.zeros(3, 1, 4, 4), torch.tensor([3.0, 1.0, 2.0]), np.arange(3), MICROSCOPE)
    assert frames.task == "regression"
    assert frames.labels.tolist() == [2, 0, 1]
    assert frames.names.tolist() == ["0", "1", "2"]
    masks = Frames.of(SyntheticDrone(4, size=16), progress=False)
    assert masks.task == "segmentation"
    assert (Frames(masks.raw, masks.truth, masks.groups, DRONE).labels == masks.labels).all()
    assert masks.take([2, 0]).names.tolist() == ["2", "0"]


def test_statistics_are_those_of_the_images():
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Frames(None, torch.arange(9), np.arange(9), MICROSCOPE, images={"own": images})
    mean, std = channel_statistics(image_batches(data, np.array([0, 2, 5, 7]), batch_size=3))
    chosen = images[[0, 2, 5, 7]].numpy().astype(np.float64)
    np.testing.assert_allclose(mean, chosen.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(std, chosen.std((0, 2, 3)), rtol=1e-6)
