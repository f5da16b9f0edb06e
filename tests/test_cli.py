import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import rawpy
import tifffile
import torch
from PIL import Image

from r2l.camera import CFA, DRONE, MICROSCOPE, Camera
from r2l.datasets import Frames
from r2l.datasets.frames import develop_views
from r2l.isp import StaticISP
from r2l.isp.added_stages import clip_highlights
from r2l.rawfile import RawFileWarning, load_camera, read_raw, write_dng
from tests.conftest import invoke

SIZE = (40, 56)
develop = partial(invoke, "develop")


def write_photo(path, camera=DRONE, seed=0):
    """Write a DNG of smooth colours with some noise, turned layout and all."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[0 : 1 : SIZE[0] * 1j, 0 : 1 : SIZE[1] * 1j]
    mosaic = 0.1 + 0.3 * down * right + 0.05 * rng.random(SIZE)
    return write_dng(path, mosaic, camera)


def write_damaged_tiff(path):
    """Write a TIFF whose tags contradict each other, which tifffile logs."""
    tifffile.imwrite(path, np.zeros(SIZE, np.uint8))
    with tifffile.TiffFile(path) as tiff:
        count = tiff.pages.first.tags["StripOffsets"].offset + 4
    content = bytearray(path.read_bytes())
    content[count : count + 4] = b"\xff" * 4
    path.write_bytes(content)


def expected_picture(photo, code, camera=None, variant="corrected", highlights="clip"):
    frame = read_raw(photo, camera)
    raw, isp = frame.tensor(), StaticISP.from_code(code, frame.camera, variant=variant)
    if highlights == "clip" and variant == "corrected":
        raw = clip_highlights(raw, frame.camera)
    return np.round(isp(raw)[0].permute(1, 2, 0).numpy() * 255)


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_program(*arguments, code=None):
    """Run the program, or a piece of Python, in a process of its own."""
    line = [sys.executable, *(("-c", code) if code else ("-m", "r2l", *map(str, arguments)))]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_it_tells_its_version():
    assert invoke("--version").output == f"r2l {version('r2l')}\n"


@pytest.mark.parametrize(
    ("arguments", "told", "without"),
    [
        (["data", "info"], ["Raw-Drone: "], {"torch", "sklearn", "scipy", "pandas"}),
        (["--help"], ["develop", "train", "predict"], {"torch", "numpy", "rawpy", "PIL"}),
        (["evaluate", "--help"], ["Images at a time.", "Folds of the training"], {"torch", "numpy", "PIL"}),
        (
            ["develop", "--help"],
            ["--pipeline", "--output", "--camera", "--variant", "--stages", "--force"],
            {"torch", "numpy", "rawpy", "PIL"},
        ),
    ],
)
def test_what_needs_no_heavy_imports_does_without(arguments, told, without):
    code = f"import sys, runpy; sys.argv[1:] = {arguments}\n"
    code += "try: runpy.run_module('r2l', run_name='__main__')\n"
    code += "except SystemExit: print(*sys.modules, file=sys.stderr)"
    done = run_program(code=code)
    assert all(word in done.stdout for word in told)
    modules = set(done.stderr.split())
    assert "r2l.cli.raw" in modules
    assert not without & modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"), [("missing.dng", "No such file"), ("damaged.tif", "no readable TIFF")]
)
def test_the_program_ends_errors_without_a_traceback(tmp_path, name, reason):
    write_damaged_tiff(tmp_path / "damaged.tif")
    done = run_program("develop", name, "--camera", "drone")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {name}: {reason}")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("code", ["bi,s,ga", "ma,u,me", "me,s,me"])
@pytest.mark.parametrize(
    ("option", "value"), [("variant", "corrected"), ("variant", "paper"), ("highlights", "keep")]
)
def test_the_picture_is_that_of_the_isp(tmp_path, code, option, value):
    photo = write_photo(tmp_path / "photo.dng")
    result = develop(photo, "-p", code, "-o", "out.png", f"--{option}", value)
    assert (result.exit_code, result.output) == (0, "out.png\n")
    expected = expected_picture(photo, code, **{option: value})
    np.testing.assert_array_equal(pixels("out.png"), expected)
    assert expected.std() > 10  # a picture, not a flat field
    assert np.any(expected != expected_picture(photo, code)) == (value != "corrected")


def test_without_output_the_name_tells_photo_and_pipeline(tmp_path):
    (tmp_path / "in").mkdir()
    photo = write_photo(tmp_path / "in" / "my photo.v2.dng")
    assert develop(photo).output == "my photo.v2_bi-s-ga.png\n"
    np.testing.assert_array_equal(pixels("my photo.v2_bi-s-ga.png"), expected_picture(photo, "bi,s,ga"))


@pytest.mark.parametrize("folder", ["out", "deep/er", "with.dot"])
def test_a_folder_takes_many_photos(tmp_path, folder):
    if "." in folder:
        (tmp_path / folder).mkdir()
    photos = [write_photo(tmp_path / f"{name}.dng", seed=i) for i, name in enumerate("abc")]
    result = develop(*photos, "-o", folder, "-p", "ma,u,me")
    assert result.exit_code == 0
    for photo in photos:
        picture = pixels(tmp_path / folder / f"{photo.stem}_ma-u-me.png")
        np.testing.assert_array_equal(picture, expected_picture(photo, "ma,u,me"))


@pytest.mark.parametrize("given", ["drone", "microscope", "camera.json"])
def test_mosaics_without_calibration_take_it_from_camera(tmp_path, given):
    values = np.round(np.random.default_rng(0).random(SIZE) * 255).astype(np.uint8)
    Image.fromarray(values).save("tile.png")
    camera = {"drone": DRONE, "microscope": MICROSCOPE}.get(given)
    if camera is None:
        camera = replace(DRONE, cfa=CFA.GBRG)
        (tmp_path / given).write_text(json.dumps(camera.to_dict()))
    result = develop("tile.png", "--camera", given, "-o", "out.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("out.png"), expected_picture("tile.png", "bi,s,ga", camera))


def test_stages_are_written_in_order_and_can_be_seen(tmp_path):
    photo = write_photo(tmp_path / "photo.dng")
    result = develop(photo, "-o", "photo.png", "--stages")
    frame = read_raw(photo)
    raw = clip_highlights(frame.tensor(), frame.camera)
    stages = StaticISP.from_code("bi,s,ga", frame.camera).stages(raw)
    names = [f"{i:02d}_{name}.png" for i, name in enumerate(stages, start=1)]
    assert names[0] == "01_raw.png"
    assert names[-1].endswith("_gamma.png")
    assert sorted(os.listdir("photo.stages")) == names
    assert result.output.splitlines() == ["photo.png", *(f"photo.stages/{name}" for name in names)]
    shown = [pixels(tmp_path / "photo.stages" / name) for name in names]
    # The mosaic is grey, and shown with the display's gamma; the last is not brightened again.
    np.testing.assert_allclose(shown[0], np.round(255 * raw[0, 0].numpy() ** (1 / 2.2)), atol=1)
    np.testing.assert_array_equal(shown[-1], pixels("photo.png"))
    assert all(picture.shape[:2] == SIZE for picture in shown)


def test_pictures_are_replaced_only_by_force(tmp_path):
    photo = write_photo(tmp_path / "photo.dng")
    (tmp_path / "out.png").write_text("precious")
    refused = develop(photo, "-o", "out.png")
    assert refused.exit_code == 2
    assert "out.png exists: --force replaces it" in refused.stderr
    assert (tmp_path / "out.png").read_text() == "precious"
    assert develop(photo, "-o", "out.png", "--force").exit_code == 0
    np.testing.assert_array_equal(pixels("out.png"), expected_picture(photo, "bi,s,ga"))
    (tmp_path / "out.stages").mkdir()
    assert develop(photo, "-o", "out.png", "--stages").exit_code == 2
    assert os.listdir("out.stages") == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_photo_that_fails_does_not_stop_the_others(tmp_path, threads):
    good = [write_photo(tmp_path / "a.dng"), write_photo(tmp_path / "c.dng")]
    (tmp_path / "b.dng").write_text("no photo")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    result = develop("a.dng", "b.dng", "c.dng", "-o", "out")
    torch.set_num_threads(before)
    assert result.exit_code == 2
    assert sorted(result.stdout.splitlines()) == ["out/a_bi-s-ga.png", "out/c_bi-s-ga.png"]
    assert result.stderr.startswith("error: b.dng: ")
    assert len(list((tmp_path / "out").iterdir())) == len(good)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a.dng", "-p", "bi,s,xx"], "ga"),
        (["a.dng", "-p", "bi,s"], "bi,s"),
        (["a.dng", "--variant", "Corected"], "(did you mean corrected?)"),
        (["a.dng", "--variant", "camera", "-p", "lines+ma,s,ga@paper"], "--variant camera contradicts"),
        (["a.dng", "--highlights", "recover"], "choose from clip, keep"),
        (["a.dng", "--camera", "phone"], "microscope, drone"),
        (["a.dng", "--camera", "gone.dng"], "gone.dng: No such file"),
        (["a.dng", "b.dng", "-o", "out.png"], "one file for 2 photos"),
        (["a.dng", "-o", "out.jpg"], "end the name in .png"),
        (["a.dng", "in/a.dng", "-o", "out"], "would both be written to"),
        (["a.dng", "-o", "a.dng"], "PNG"),
        (["tile.png", "-o", "tile.png", "--force", "--camera", "drone"], "is one of the photos"),
        (["tile.png"], "--camera microscope|drone|file.json"),
        (["tile.png", "--camera", "turned.json", "a.dng", "-o", "out"], "GBRG"),
        (["a.dng", "-o", "b.dng/out.png"], "b.dng"),
        (["a.dng", "-o", "folder.png/.", "--force"], "folder.png/a_bi-s-ga.png is a folder"),
    ],
)
def test_mistakes_are_explained(tmp_path, arguments, complaint):
    write_photo(tmp_path / "a.dng")
    write_photo(tmp_path / "b.dng")
    (tmp_path / "in").mkdir()
    write_photo(tmp_path / "in" / "a.dng")
    (tmp_path / "folder.png" / "a_bi-s-ga.png").mkdir(parents=True)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save("tile.png")
    (tmp_path / "turned.json").write_text(json.dumps(replace(DRONE, cfa=CFA.GBRG).to_dict()))
    before = (tmp_path / "tile.png").read_bytes()
    result = develop(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert (tmp_path / "tile.png").read_bytes() == before
    assert list(tmp_path.rglob("*.part")) == []


def test_a_full_disk_is_reported_and_leaves_no_half_picture(tmp_path):
    resource = pytest.importorskip("resource", reason="Unix only")
    photo = write_photo(tmp_path / "photo.dng")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        result = develop(photo, "-o", "out.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 2
    assert result.stderr == "error: out.png: File too large\n"
    assert sorted(os.listdir()) == ["photo.dng"]


@pytest.mark.parametrize("camera", ["drone", "microscope"])
def test_published_tiles_develop(sample_raws, camera):
    name = {"drone": "raw_drone_tile.png", "microscope": "raw_microscopy_tile.png"}[camera]
    result = develop(sample_raws / name, "--camera", camera, "-o", "out.png")
    assert result.exit_code == 0, result.output
    picture = pixels("out.png")
    assert picture.shape[2] == 3
    assert np.unique(picture).size > 50


@pytest.mark.parametrize("code", ["bi,s,ga", "ma,u,me", "me,s,ga"])
def test_a_real_photo_looks_like_the_one_libraw_develops(sample_raws, code):
    photo = sample_raws / "colorchart.dng"
    assert develop(photo, "-p", code, "-o", "out.png").exit_code == 0
    ours = pixels("out.png").astype(float)
    with rawpy.imread(str(photo)) as raw:
        theirs = raw.postprocess(
            use_camera_wb=True, no_auto_bright=True, adjust_maximum_thr=0, gamma=(2.2, 0)
        ).astype(float)
    assert ours.shape == theirs.shape
    luminance = np.array([0.299, 0.587, 0.114])
    assert np.corrcoef((ours @ luminance).ravel(), (theirs @ luminance).ravel())[0, 1] > 0.98
    # Averages of 17 x 17 pixels, since demosaicing and sharpening differ at edges and in noise.
    blocks = [p.reshape(68, 17, 102, 17, 3).mean(axis=(1, 3)) for p in (ours, theirs)]
    assert np.abs(blocks[0] - blocks[1]).mean() < 1
    assert np.percentile(np.abs(blocks[0] - blocks[1]), 99) < 5
    chroma = [b.max(axis=2) - b.min(axis=2) for b in blocks]
    neutral = (chroma[1] < 15) & (blocks[1].mean(axis=2) > 40)
    assert neutral.sum() > 200
    assert chroma[0][neutral].max() < 21


def counted(tmp_path, black, name):
    """A 12-bit frame in a container of 16 bit, and a description of its camera."""
    pixels = np.add.outer(np.arange(300, 2200, 60), 20 * np.arange(32)).astype(np.uint16)
    np.save(tmp_path / "frame.npy", pixels)
    camera = tmp_path / f"{name}.json"
    colours = {name: DRONE.to_dict()[name] for name in ("white_balance", "colour_matrix")}
    camera.write_text(json.dumps({"name": name, "cfa": "RGGB", **colours, **black}))
    return tmp_path / "frame.npy", camera


def test_a_black_or_white_picture_is_told_once_with_levels_and_container(tmp_path):
    right = {"bits": 12, "black_level": 256, "white_level": 4095}
    wrong = {
        "black": {"full_scale": 4095, "black_level": 256, "white_level": 4095},
        "white": {"full_scale": 65535, "black_level": 1, "white_level": 200},
    }
    photo, camera = counted(tmp_path, right, "fits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert develop(photo, "--camera", camera, "-o", tmp_path / "fits.png").exit_code == 0
    for end, entries in wrong.items():
        photo, camera = counted(tmp_path, entries, f"all {end}")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for number in range(2):
                develop(photo, "--camera", camera, "-o", tmp_path / f"{end}{number}.png")
        blank = [str(w.message) for w in told if "nearly" in str(w.message)]
        assert len(blank) == 1
        for word in (f"all of it is {end}", "black level", "white level", "container", "frame.npy"):
            assert word in blank[0]
        picture = np.asarray(Image.open(tmp_path / f"{end}0.png"))
        assert (picture == (0 if end == "black" else 255)).mean() > 0.99


def test_a_set_that_is_developed_black_is_told_too():
    dark = replace(DRONE, name="dark", black_level=(0.9,) * 4)
    frames = Frames(torch.full((2, 1, 8, 8), 0.2), torch.tensor([0, 1]), np.arange(2), dark)
    with pytest.warns(RawFileWarning, match="dark: developed, .* all of it is black"):
        develop_views(frames, ["bi,s,ga"], progress=False)


def test_a_camera_is_shown_and_written(tmp_path):
    photo = write_photo(tmp_path / "a.dng")
    shown = invoke("camera", "show", photo)
    assert shown.exit_code == 0
    assert Camera.from_dict(json.loads(shown.output)) == DRONE
    own = tmp_path / "own.json"
    for _ in range(2):
        written = invoke("camera", "show", photo, "-o", own)
        assert load_camera(own) == DRONE
    assert written.exit_code == 2
    assert "--force" in written.output
    assert invoke("camera", "show", "phone").exit_code == 2
