import json
import sys
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.datasets import Frames, SyntheticDrone, SyntheticMicroscopy, develop_views
from r2l.datasets.splits import Fold
from r2l.drift import ShiftDetector, sensor_table, summarise, train_models
from r2l.drift.adjustment import Domain
from r2l.drift.forensics import tolerance_report
from r2l.files import R2LError
from r2l.isp import PIPELINES, ParametrizedISP, StaticISP, develop_all, open_pipeline, static
from r2l.isp import functional as stage
from r2l.isp.added_stages import Displayed, display_stage, measure_defects
from r2l.isp.adjustable import AdjustableISP
from r2l.isp.demosaic import bilinear
from r2l.isp.grammar import RandomPipeline, check_pipeline, linear_stages, open_pipelines
from r2l.isp.learned import LearnedISP
from r2l.isp.pipeline import stage_gradients
from r2l.isp.saving import load_isp, save_isp
from r2l.isp.static import ENGINES, EngineISP
from r2l.options import Options, resolve_options
from r2l.rawfile import RawFrame, read_raw, write_dng
from r2l.sensor import apply_levels, mosaic
from r2l.sweep.jobs import read_sweep
from r2l.training.experiment import experiment
from r2l.training.predict import predict_matrix
from r2l.viz.pictures import plot_gradients, plot_samples, plot_stages
from r2l.widgets.camera import camera_explorer
from tests.common import CAMERAS, LAYOUTS, refused
from tests.common import natural as natural_double
from tests.conftest import invoke
from tests.test_forensics import Blind, flat_frames
from tests.test_widgets import controls, pages, pictures

ENGINE_NAMES = [f"{program}:{m}" for program, methods in ENGINES.items() for m in methods]
DISPLAY = ("jpeg:75", "resize:0.5", "tone:srgb", "tone:filmic", "tone:contrast", "quantise:8", "vignette")
DISPLAY += ("chroma_blur:1.5",)
MOSAIC = ("defects:0.05", "shading:0.3", "lines:5")
DIFFERENTIABLE = [d for d in DISPLAY if not d.startswith(("jpeg", "quantise"))]


natural = partial(natural_double, dtype=torch.float32)


def smooth_mosaic(camera, size=48):
    """Return a mosaic of a scene that changes slowly, in which all demosaicings agree."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, size),) * 2, indexing="ij")
    light = 0.3 + 0.15 * torch.sin(3 * x) + 0.1 * torch.cos(2 * y)
    colours = torch.stack([0.9 * light, light, 0.7 * light + 0.05 * x])
    gains = torch.tensor(camera.white_balance).abs()[:, None, None]
    return apply_levels(mosaic((colours / gains / 1.2).clamp(0, 1), camera.cfa), camera)[None]


def plain(raw, camera):
    """Return r2l's own bilinear demosaicing, balanced first, without sharpening and denoising."""
    raw = stage.subtract_black_level(raw, camera.black_level, camera.white_level)
    image = stage.balance_white(bilinear(raw, camera.cfa), camera.white_balance)
    return stage.gamma_correct(stage.apply_colour_matrix(image, camera.colour_matrix))


# --- the grammar ---
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([*PIPELINES, "bi,s,fft", *ENGINE_NAMES]),
    st.sampled_from(["", "@paper", "@camera", "@corrected"]),
    st.lists(st.sampled_from(MOSAIC), max_size=2),
    st.lists(st.sampled_from(DISPLAY), max_size=3),
    st.sampled_from(["", " "]),
)
def test_every_well_formed_name_is_taken_apart_and_means_its_parts(base, variant, before, after, space):
    variant = "" if ":" in base else variant
    text = f"{space}+{space}".join([*before, base + variant, *after])
    assert check_pipeline(text) == text
    isp = open_pipeline(text, DRONE)
    if before or after:
        assert [step.name for step in isp.before] == [m.partition(":")[0] for m in before]
        assert [step.name for step in isp.after] == [d.partition(":")[0] for d in after]
        isp = isp.base
    if ":" in base:
        assert isp.engine == base
    else:
        assert isp.variant == (variant[1:] or "corrected")
        assert repr(isp) == repr(StaticISP.from_code(base, DRONE, isp.variant))


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="bimaegu,sft:+@./ 05jpegrsz", max_size=24))
def test_any_other_text_is_an_error_in_words(text):
    reason = ""
    try:
        check_pipeline(text)
    except ValueError as error:
        reason = str(error)
    assert len(reason) > 20 or "," in text or ":" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ma,s", "demosaic,sharpening,denoising"),
        ("xx,s,ga", "choose from bi, ma, me"),
        ("ma,s,ga@canon", "choose from corrected, paper, camera"),
        ("libraw:amaze", "choose from linear, ppg, ahd, dcb, dht, vng"),
        ("opencv:ahd", "choose from bilinear, ea, vng"),
        ("ma,s,ga+jpg:75", "jpeg, resize, tone, quantise, chroma_blur, vignette"),
        ("ma,s,ga+", "unknown display stage ''"),
        ("ma,s,ga+jpeg:7.5", "whole number from 1 to 100"),
        ("ma,s,ga+jpeg:0", "whole number from 1 to 100"),
        ("ma,s,ga+resize", "from 0.015625 to 8"),
        ("ma,s,ga+resize:nan", "from 0.015625 to 8"),
        ("ma,s,ga+tone:velvia", "choose from srgb, filmic, contrast"),
        ("bilinear", "libraw:ahd.*opencv:ea.*save_isp.*module:function.*jpeg"),
        ("libraw:ahd@paper", "choose from linear"),
        ("defects:0.1+", "only prepares a mosaic.*ma,s,ga"),
        ("lines", "only prepares a mosaic"),
        ("lines:2.5+ma,s,ga", "odd number from 3 to 255"),
        ("lines:4+ma,s,ga", "odd number from 3 to 255"),
        ("defects:2+libraw:ahd", "number from 0 to 1"),
        ("shading:1+ma,s,ga", "number from 0 to 0.95"),
    ],
)
def test_an_unknown_part_is_told_what_there_is(text, words):
    refused(words.replace(".*", "(.|\n)*"), open_pipeline, text, DRONE)


def test_a_folder_may_have_any_name_and_display_stages_behind_it(tmp_path):
    raw, isp = natural(DRONE), ParametrizedISP(DRONE)
    folder = save_isp(isp, tmp_path / "a+b,c:d@e")
    for spec in (folder, str(folder)):
        assert torch.equal(open_pipeline(spec, DRONE)(raw), isp(raw))
    shown = open_pipeline(f"{save_isp(isp, tmp_path / 'mine')}+quantise:4", DRONE)
    assert torch.equal(shown(raw), display_stage("quantise:4")(isp(raw)))
    refused("layout RGGB; these frames are GBRG", open_pipeline, folder, replace(DRONE, cfa=CFA.GBRG))


def test_an_address_is_fetched(tmp_path):
    folder, asked = save_isp(StaticISP.from_code("me,u,me", DRONE), tmp_path / "processor"), []
    fetch = lambda address: asked.append(address) or folder  # noqa: E731
    isp = open_pipeline("runs:/abc/processor+jpeg:50", DRONE, fetch=fetch)
    assert asked == ["runs:/abc/processor"]
    assert isp.base.demosaic == "menon2007"
    refused("is no address", open_pipeline, "runs:/abc/processor", DRONE)


def test_own_code_is_found_beside_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "from r2l.isp import StaticISP\n"
        "def look(raw):\n    return raw.expand(-1, 3, -1, -1)\n"
        "class Whole(StaticISP):\n"
        "    def __init__(self, camera):\n        super().__init__(camera, 'malvar2004')\n"
        "number = 7\n"
    )
    Path("own_looks.py").write_text(code)
    path, raw = list(sys.path), natural(DRONE)
    views = develop_all(raw, DRONE, ["own_looks:look+quantise:1", "own_looks:Whole", "ma,s,ga"])
    assert set(views["own_looks:look+quantise:1"].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(views["own_looks:Whole"], views["ma,s,ga"])
    mine = StaticISP.from_code("ma,s,ga", DRONE)
    mine.base = torch.nn.Identity()  # a name of its own
    assert torch.equal(develop_all(raw, DRONE, {"mine": mine})["mine"], views["ma,s,ga"])
    assert sys.path == path
    for wrong in ("own_looks:nothing", "nowhere:look", "own_looks:number"):
        refused(r"mine\.py|can be called", open_pipeline, wrong, DRONE, error=R2LError)


# --- engines ---
@LAYOUTS
@pytest.mark.parametrize("engine", ENGINE_NAMES)
@CAMERAS
def test_engines_agree_with_r2l_in_colour(engine, camera, cfa):
    camera = replace(camera, cfa=cfa)
    raw = smooth_mosaic(camera)
    ours, theirs = plain(raw, camera), open_pipeline(engine, camera)(raw)
    # OpenCV's VNG has 8 bit, which linear shadows feel.
    tolerance = 0.03 if engine == "opencv:vng" else 0.0015
    # Six pixels in: what goes on beyond the border is the mirror image, in which slopes turn.
    assert (ours - theirs)[..., 6:-6, 6:-6].abs().max() < tolerance
    assert (ours.mean((2, 3)) - theirs.mean((2, 3))).abs().max() < 0.001
    assert (ours - theirs).abs().max() < 0.04
    if engine in ("libraw:linear", "opencv:bilinear"):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=3e-4)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_engines_agree_with_r2l_in_the_colours_of_a_real_photo(sample_raws, engine):
    frame = read_raw(sample_raws / "colorchart.dng")
    raw = frame.tensor()[..., 320:832, 600:1112]
    ours, theirs = plain(raw, frame.camera), open_pipeline(engine, frame.camera)(raw)
    apart = torch.nn.functional.avg_pool2d(theirs - ours, 32)
    # Detail differs, the colour of areas does not; 8 bit lose some in the shadows.
    most, mean = (0.1, 0.03) if engine == "opencv:vng" else (0.02, 0.005)
    assert apart.abs().max() < most
    assert apart.mean((0, 2, 3)).abs().max() < mean


def test_opencv_bilinear_is_bilinear_demosaicing_up_to_the_border():
    raw = natural(DRONE)
    theirs, ours = open_pipeline("opencv:bilinear", DRONE)(raw), plain(raw, DRONE)
    # Steps of 16 bit, which the gamma curve widens in the dark.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-2)
    assert (theirs - ours).abs().mean() < 5e-5


def test_an_engine_is_what_its_program_makes_of_the_same_steps():
    camera = replace(DRONE, white_balance=(1.0, 1.0, 1.0), black_level=(0.0,) * 4)
    raw = natural(camera)
    steps = (raw[0, 0] * 65535).round().numpy().astype(np.uint16)
    theirs = torch.from_numpy(cv2.demosaicing(steps, cv2.COLOR_BayerRGGB2RGB_EA) / 65535)
    theirs = stage.apply_colour_matrix(theirs.permute(2, 0, 1)[None], camera.colour_matrix)
    ours = open_pipeline("opencv:ea", camera)(raw)
    inside = np.s_[..., 4:-4, 4:-4]
    torch.testing.assert_close(ours[inside], stage.gamma_correct(theirs).float()[inside], rtol=0, atol=1e-4)


def test_libraws_methods_differ_where_there_is_detail_and_a_batch_is_its_frames():
    raw = natural(DRONE).repeat(3, 1, 1, 1)
    raw = raw * torch.tensor([1.0, 0.8, 0.5])[:, None, None, None]
    images = {m: open_pipeline(f"libraw:{m}", DRONE)(raw) for m in ENGINES["libraw"]}
    for method, image in images.items():
        alone = open_pipeline(f"libraw:{method}", DRONE)(raw[1:2])
        torch.testing.assert_close(image[1:2], alone, rtol=0, atol=1e-6)
        others = [v for n, v in images.items() if n != method]
        assert min((image - other).abs().mean() for other in others) > 1e-5


def test_engines_refuse_gradients_in_words_and_lend_themselves_otherwise():
    isp, raw = EngineISP(DRONE, "libraw:ahd"), smooth_mosaic(DRONE)
    refused(r"passes no gradients.*ma,s,ga@camera", isp, raw.requires_grad_())
    refused("passes no gradients", stage_gradients, isp, raw, lambda image: image.mean())
    with torch.no_grad():
        isp(raw)
    assert not isp(raw.detach()).requires_grad
    refused("no settings to turn", AdjustableISP, "libraw:ahd", DRONE)


def test_without_opencv_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    engine, raw = open_pipeline("opencv:ea", DRONE), smooth_mosaic(DRONE)
    refused("pip install opencv-python-headless", engine, raw, error=R2LError)


# --- display stages ---
@pytest.mark.parametrize("text", DIFFERENTIABLE)
def test_display_stages_pass_true_gradients(text):
    image = 0.05 + 0.9 * torch.rand(1, 3, 6, 8, dtype=torch.float64)
    step = display_stage(text)
    assert torch.autograd.gradcheck(step, image.requires_grad_(), atol=1e-4)
    black = torch.zeros(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(step(black).sum(), black)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("text", ["jpeg:30", "quantise:3"])
def test_what_is_rounded_passes_gradients_straight_through(text):
    image, weights = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    step, source = display_stage(text), image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((step(source) * weights).sum(), source)
    assert torch.equal(gradient, weights)
    torch.testing.assert_close(step(source), step(image))
    assert step(image[:0]).shape == (0, 3, 16, 16)
    raw = natural(DRONE)
    chain = stage_gradients(open_pipeline(f"ma,s,ga+{text}", DRONE), raw, lambda shown: shown.square().mean())
    assert chain["raw"].gradient.abs().max() > 0


@pytest.mark.parametrize("text", DISPLAY)
def test_display_stages_keep_range_grey_and_dtype(text):
    grey = torch.linspace(0, 1, 16).repeat(3, 16, 1)[None]
    shown = display_stage(text)(grey)
    assert shown.dtype == grey.dtype
    assert 0 <= shown.min() <= shown.max() <= 1
    assert shown.shape[-1] == (8 if text.startswith("resize") else 16)
    tolerance = 0.02 if text.startswith("jpeg") else 1e-5
    assert (shown - shown.mean(1, keepdim=True)).abs().max() < tolerance


def test_display_stages_are_what_they_are_called(tmp_path):
    image = torch.rand(1, 3, 32, 48)
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "it.jpg", quality=60)
    read = torch.from_numpy(np.array(Image.open(tmp_path / "it.jpg"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(display_stage("jpeg:60")(image)[0], read)
    shaded = display_stage("vignette:0.4")(torch.full((1, 3, 9, 9), 0.5))[0, 0]
    light = (shaded / 0.5) ** 2.2
    assert light[4, 4] == pytest.approx(1)
    assert light[0, 0] == pytest.approx(0.6, abs=1e-5)
    assert len(display_stage("quantise:2")(image).unique()) == 4
    # https://www.w3.org/Graphics/Color/srgb: a linear 0.5 is shown as 0.7354.
    half = torch.full((1, 3, 2, 2), 0.5 ** (1 / 2.2))
    torch.testing.assert_close(display_stage("tone:srgb")(half), torch.full_like(half, 0.735358))
    for curve in ("srgb", "filmic", "contrast"):
        ramp = display_stage(f"tone:{curve}")(torch.linspace(0, 1, 99).repeat(1, 3, 1, 1))[0, 0, 0]
        assert ramp[0] == 0
        assert ramp[-1] == pytest.approx(1, abs=1e-4)
        assert (ramp.diff() > 0).all()
    softer = display_stage("chroma_blur:2")(image)
    torch.testing.assert_close(stage.luma(softer), stage.luma(image), atol=0.2, rtol=0)
    apart = lambda x: (x - stage.luma(x)).std()  # noqa: E731
    assert apart(softer) < 0.5 * apart(image)


# --- all together ---
def test_no_frames_are_no_pictures():
    raw, names = torch.empty(0, 1, 16, 18), ["defects+lines+shading+bi,s,ga+vignette+jpeg", *ENGINE_NAMES]
    for name, view in develop_all(raw, DRONE, names).items():
        assert view.shape == open_pipeline(name, DRONE)(raw).shape == (0, 3, 16, 18)
    refused("0 frames of 16x18 pixels are too few", measure_defects, raw, DRONE)


def test_no_base_develops_twice(monkeypatch):
    raw, calls = smooth_mosaic(DRONE), []
    original = static._demosaic_by
    counted = lambda *a: calls.append(a[1:3]) or original(*a)  # noqa: E731
    monkeypatch.setattr(static, "_demosaic_by", counted)
    names = ["libraw:ahd", "libraw:ahd+jpeg:75", "libraw:ahd+jpeg:75+resize:0.5"]
    names += ["ma,s,ga", "ma,s,ga+jpeg", "defects:0.1+ma,s,ga"]
    views = develop_all(raw, DRONE, names)
    assert calls == [("libraw", "ahd")]
    for name, view in views.items():
        assert torch.equal(view, open_pipeline(name, DRONE)(raw))
    calls.clear()
    frames = develop_views(SyntheticMicroscopy(3, size=32), names, batch_size=3, progress=False)
    assert calls == [("libraw", "ahd")]
    assert frames.images["libraw:ahd+jpeg:75+resize:0.5"].shape == (3, 3, 16, 16)
    # Masks meet images of their size.
    masked = Frames.of(SyntheticDrone(2, size=32, task="segmentation"), progress=False)
    views = develop_views(masked, ["bi,s,ga+resize:0.5"], progress=False)
    assert views.images["bi,s,ga+resize:0.5"].shape == (2, 3, 32, 32)
    opened = open_pipelines(names, DRONE)
    assert opened["libraw:ahd+jpeg:75"].base is opened["libraw:ahd"]


def test_no_pipeline_of_a_matrix_develops_an_image_twice():
    """Ten columns, of which eight are developed and two are their JPEGs; two models look at each."""
    seen = dict.fromkeys(("own", "other", "third"), 0)

    def counted(name, isp):
        def develop(raw):
            seen[name] += len(raw)
            return isp(raw)

        return develop

    data = SyntheticMicroscopy(12, size=32)
    own = {name: counted(name, open_pipeline("bi,s,ga", data.camera)) for name in seen}
    engines_used = ("libraw:ahd", "libraw:ppg", "opencv:ea", "libraw:ahd+jpeg:75", "opencv:ea+jpeg:75")
    names = {**own, **{n: n for n in (*engines_used, "ma,s,ga", "me,u,me@camera")}}
    images = dict.fromkeys(("libraw", "opencv"), 0)
    original = static._demosaic_by

    def engine(mosaic, program, *rest):
        images[program] += len(mosaic)
        return original(mosaic, program, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "_demosaic_by", engine)
        views = develop_views(data, names, batch_size=5, progress=False)
        models = train_models(views, ["ma,s,ga", "own"], n_splits=2, epochs=1, progress=False)
        summarise(predict_matrix(models, views, names, progress=False)).matrix()
    assert len(names) == 10
    assert seen == {"own": 12, "other": 12, "third": 12}
    assert images == {"libraw": 2 * 12, "opencv": 12}


def test_a_learned_camera_is_a_pipeline_like_any_other(tmp_path):
    raw = natural(DRONE)
    folder = save_isp(LearnedISP(DRONE, "malvar2004"), tmp_path / "my_camera")
    views = develop_all(raw, DRONE, [str(folder), f"{folder}+resize:0.5"])
    assert torch.equal(views[str(folder)], LearnedISP(DRONE, "malvar2004")(raw))
    again = load_isp(save_isp(open_pipeline(f"{folder}+jpeg:75", DRONE), tmp_path / "shown"))
    assert torch.equal(again(raw), display_stage("jpeg:75")(views[str(folder)]))
    assert linear_stages(again.stages(raw))[-1] == "colour_matrix"


def test_they_are_saved_and_loaded_with_what_they_learned(tmp_path):
    learned = Displayed(DRONE, ParametrizedISP(DRONE).set_(gamma=1.7), "tone:filmic")
    for spec in ("libraw:dcb", "me,u,me@camera+resize:0.5+jpeg:60", learned):
        raw, isp = natural(DRONE), open_pipeline(spec, DRONE)
        again = load_isp(save_isp(isp, tmp_path))
        assert torch.equal(again(raw), isp(raw))
        assert repr(again) == repr(isp)
    description = json.loads((tmp_path / "isp.json").read_text())
    description["options"]["base"]["kind"] = "Nothing"
    (tmp_path / "isp.json").write_text(json.dumps(description))
    refused("unknown kind 'Nothing'", load_isp, tmp_path)
    with pytest.raises(ValueError, match="_Function is no ISP that can be saved"):
        save_isp(Displayed(DRONE, open_pipeline(lambda x: x, DRONE), "jpeg"), tmp_path / "own")


# --- everywhere a pipeline is named ---
OWN = "def look(raw):\n    return raw.expand(-1, 3, -1, -1).sqrt()\n"
NAMES = ("libraw:ppg", "defects:0.05+lines:5+ma,s,ga@camera")
NAMES += ("bi,s,ga+resize:0.5+jpeg:75", "opencv:ea+tone:filmic")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_look.py").write_text(OWN)
    save_isp(StaticISP.from_code("me,u,ga", MICROSCOPE), "saved")
    return ["saved", "own_look:look", *NAMES]


def test_the_matrix_and_what_follows_takes_them(here):
    data = SyntheticMicroscopy(40, size=32)
    names = {**{n: n for n in here}, "mine": lambda raw: raw.expand(-1, 3, -1, -1)}
    views = develop_views(data, names, progress=False)
    models = train_models(views, list(names)[:2], n_splits=2, epochs=1, progress=False)
    answers = predict_matrix(models, views, names, progress=False)
    assert set(answers["test"]) == set(names)
    assert summarise(answers).matrix().shape == (2, len(names))
    drifted = sensor_table(models, views, ["exposure"], [1], pipelines=names, distance="l2", progress=False)
    assert set(drifted["train"]) == set(list(names)[:2])
    detector = ShiftDetector.fit(views.images["saved"][:20], groups=1)
    assert detector.test(views.images["own_look:look"][20:], groups=1).p_value < 0.05


def test_a_domain_is_developed_by_them():
    frames = Frames.of(SyntheticMicroscopy(20, size=32), progress=False)
    domain = Domain(frames, "libraw:ppg+jpeg:75")
    images = develop_views(frames, ["libraw:ppg+jpeg:75"], progress=False).view("libraw:ppg+jpeg:75")
    mean, _ = domain.statistics(np.arange(20))
    np.testing.assert_allclose(mean, images.images["libraw:ppg+jpeg:75"].mean((0, 2, 3)), rtol=1e-4)
    trained = domain.train("SmallResNet", Fold(np.arange(16), np.arange(16, 20)), 0, epochs=1)
    assert trained(frames.raw[16:]).shape == (4, len(frames.classes))


def test_training_draws_from_them():
    names = ("libraw:ppg", "ma,s,ga@camera+jpeg:75", "bi,s,me", "me,u,ga")
    raw = torch.linspace(0.8, 1, 24).reshape(-1, 1, 1, 1) * natural(DRONE)
    views, pipelines = torch.stack([*develop_all(raw, DRONE, names).values()]), RandomPipeline(DRONE, names)
    torch.manual_seed(0)
    apart = [(views - pipelines(raw)).abs().amax((2, 3, 4)) for _ in range(2)]
    assert max(each.amin(0).max() for each in apart) < 1e-5
    first, second = (each.argmin(0).tolist() for each in apart)
    assert set(first) == set(range(4)), "each image has a pipeline of its own"
    assert first != second, "each time another"
    refused("no pipelines", RandomPipeline, DRONE, [])
    refused("several sizes make no batch", RandomPipeline(DRONE, ["bi,s,ga", "bi,s,ga+resize:0.5"]), raw)


def test_the_command_line_takes_them(here):
    write_dng("photo.dng", smooth_mosaic(MICROSCOPE)[0, 0].numpy(), MICROSCOPE)
    raw = read_raw("photo.dng").tensor()
    for name in here:
        done = invoke("develop", "photo.dng", "-p", name, "-o", "out")
        assert done.exit_code == 0, done.output
        (written,) = Path("out").iterdir()
        shown = np.asarray(Image.open(written)).astype(int)
        expected = open_pipeline(name, MICROSCOPE)(raw)[0].permute(1, 2, 0)
        assert np.abs(shown - (expected * 255).round().int().numpy()).max() <= 1
        written.unlink()
    done = invoke("develop", "photo.dng", "-p", NAMES[3], "-o", "a.png", "--stages")
    assert done.exit_code == 0
    stages = sorted(p.stem for p in Path("a.stages").iterdir())
    assert [name[3:] for name in stages[-3:]] == ["clip", "gamma", "tone"]
    for wrong in ("ma,s,ga+velvia", "libraw:x"):
        done = invoke("develop", "photo.dng", "-p", wrong)
        assert done.exit_code == 2
        assert "choose from" in done.output


PARTS = (
    *(*PIPELINES, *(f"bi,s,ga@{v}" for v in ("paper", "corrected", "camera")), "bi,s,fft"),
    *(*ENGINE_NAMES, *(f"bi,s,ga+{d}" for d in DISPLAY), *(f"{m}+bi,s,ga" for m in MOSAIC)),
    *("saved", "own_look:look", "lines:5+saved+jpeg", "defects+own_look:look+vignette"),
)


@lru_cache
def two_frames():
    return Frames.of(SyntheticMicroscopy(2, size=32), progress=False)


@lru_cache
def any_report():
    frames = flat_frames([0.3] * 2, MICROSCOPE)
    return tolerance_report(Blind(), frames, settings=["gamma"], points=3, progress=False)


@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_taken_at_each_place(here, name):
    assert Options(test_pipelines=name).tested_codes == (name,)
    assert resolve_options(Options(pipeline=name))[0].pipeline in (name, None if name in PIPELINES else name)
    text = json.dumps({"train": {"dataset": "SyntheticMicroscopy"}, "grid": {"pipeline": [name]}})
    Path("sweep.yaml").write_text(text)
    (job,) = read_sweep(Path("sweep.yaml")).jobs
    assert job.options().pipeline in (name, None)
    assert resolve_options(job.options())[0].processing_mode == "static"

    frames = two_frames()
    assert develop_views(frames, [name], progress=False).images[name].shape[:2] == (2, 3)
    assert len(Domain(frames, name).statistics(np.arange(2))[0]) == 3
    isp, raw = open_pipeline(name, MICROSCOPE), frames.raw[:1]
    torch.testing.assert_close(list(isp.stages(raw).values())[-1], isp(raw), rtol=0, atol=1e-4)

    box = camera_explorer({"frame": RawFrame(frames.raw[0, 0].numpy(), MICROSCOPE)}, any_report())
    menu = controls(box)["pipeline"]
    menu.value = name
    ((alt, picture),) = pictures(box)
    assert name in alt
    menu.value = "ma,s,ga+velvia"
    assert "choose from jpeg" in pages(box)
    assert pictures(box) == [(alt, picture)]


def test_options_and_sweeps_take_them(here):
    options = Options(test_pipelines=" ".join([*here, "all"]), pipeline="libraw:ahd+jpeg:75")
    assert options.tested_codes == (*here, *PIPELINES)
    settled, lines = resolve_options(options)
    assert settled.processing_mode == "static"
    assert any("a pipeline is given" in line for line in lines)
    tested = Options(test_pipelines="all@paper libraw:ahd bi,s,ga@paper").tested_codes
    assert tested == (*(f"{code}@paper" for code in PIPELINES), "libraw:ahd")
    refused("corrected, paper, camera", Options, test_pipelines="all@best")
    refused("--test_pipelines: unknown display stage", Options, test_pipelines="bi,s,ga bi,s,ga+velvia")
    refused("--pipeline: unknown method of libraw", Options, pipeline="libraw:magic")
    for clash in ({"adv_training": True}, {"processor_uri": "saved"}):
        refused("goes with neither", Options, pipeline="libraw:ahd", **clash)


SMALL = {"dataset": "SyntheticMicroscopy", "n_images": 40, "image_size": 32, "epochs": 1}


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["libraw:ppg+jpeg:75", "own_look:look"])
def test_a_run_is_trained_and_tested_on_them_and_keeps_what_can_be_kept(here, pipeline):
    kept_as = {"tracking_uri": "sqlite:///m.db", "save_locally": True, "track_processing": True}
    tested = {"pipeline": pipeline, "test_pipelines": f"{pipeline} saved {NAMES[2]}"}
    options = Options(**SMALL, classifier_network="SmallResNet", **tested, **kept_as)
    said = []
    outcome = experiment(options, say=said.append)
    assert list(outcome.tested["test"].unique()) == [pipeline, "saved", NAMES[2]]
    assert set(outcome.tested["train"]) == {pipeline}
    own = outcome.tested.query("test == @pipeline").set_index("image")
    said_before = outcome.predictions.set_index("image").loc[own.index]
    np.testing.assert_allclose(own["loss"], said_before["loss"], rtol=1e-4)
    kept = list(outcome.folder.rglob("isp.json"))
    if ":" in pipeline and "libraw" not in pipeline:
        assert not kept
        assert any("code of your own" in line for line in said)
    else:
        again = load_isp(kept[0].parent)
        raw = smooth_mosaic(MICROSCOPE)
        torch.testing.assert_close(again(raw), open_pipeline(pipeline, MICROSCOPE)(raw))


def test_figures_and_widgets_take_them(here):
    assert plot_samples(SyntheticMicroscopy(9, size=32), per_class=1, develop="libraw:ahd")
    isp = open_pipeline("ma,s,ga+jpeg:75", DRONE)
    stages = stage_gradients(isp, smooth_mosaic(DRONE), lambda image: image.mean())
    assert linear_stages(stages)[-1] == "clip"
    assert plot_gradients(stages)
    assert plot_stages(isp.stages(smooth_mosaic(DRONE)))


@pytest.mark.slow
def test_a_run_with_a_network_of_ones_own_is_kept_and_taken_up_again(here, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_net", raising=False)  # another test's
    Path("own_net.py").write_text(
        "from torch import nn\n"
        "def tiny(n):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, n))\n"
    )
    small = SMALL | {"processing_mode": "static", "tracking_uri": "sqlite:///m.db"}
    options = Options(**small, classifier_network="own_net:tiny", save_locally=True)
    first = experiment(options, say=lambda line: None)
    (folder,) = {path.parent for path in first.folder.rglob("model.json")}
    again = {"classifier_uri": str(folder), "freeze_classifier": True}
    again |= {"processing_mode": "parametrized"}
    with pytest.raises(R2LError, match="--classifier_network own_net:tiny"):
        experiment(Options(**{**small, **again}), say=lambda line: None)
    trusted = {**small, **again, "classifier_network": "own_net:tiny"}
    assert len(experiment(Options(**trusted), say=lambda line: None).predictions)
    refused("--classifier_network: unknown classifier", Options, classifier_network="resnet_18")
