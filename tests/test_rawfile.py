import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawpy
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from r2l.camera import CFA, DRONE, MICROSCOPE, Camera
from r2l.isp import StaticISP
from r2l.rawfile import RawFileError, load_camera, read_raw, write_dng
from r2l.rawfile.dng_tags import standard_form

FULL = 65535
ORIENTATION, AS_SHOT_NEUTRAL = 274, 50728
# Different in every place where two things could be mixed up; levels are whole 16-bit steps.
SENSOR = Camera(
    name="a sensor",
    cfa=CFA.RGGB,
    black_level=(1000 / FULL, 1010 / FULL, 1020 / FULL, 1030 / FULL),
    white_level=60000 / FULL,
    white_balance=(2.0, 1.0, 1.5),
    colour_matrix=((1.6, -0.4, -0.2), (-0.3, 1.7, -0.4), (0.1, -0.6, 1.5)),
)
SINGULAR = replace(SENSOR, colour_matrix=((1.0, 0.0, 0.0),) * 3, white_balance=(0.0, -1.0, 2.0))
BEYOND = replace(SENSOR, white_level=1.5, black_level=(-0.1, 0.2e-5, 0.0, 0.3), name="Kamera „ü“")


def random_mosaic(shape=(24, 32), seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def to_16_bit(mosaic):
    return np.round(mosaic.astype(np.float64) * FULL).astype(np.uint16)


def edit_tag(path, code, value):
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags[code].overwrite(value)


def write_tiff_dng(path, values, photometric, *tags):
    """Write a DNG with no more than the given tags, to have kinds that r2l does not write."""
    version = (50706, "B", 4, bytes((1, 4, 0, 0)), True)
    model = (50708, "s", 0, "a sensor", True)
    tifffile.imwrite(path, values, photometric=photometric, extratags=[version, model, *tags], metadata=None)


def tiles(values, shape=(48, 64)):
    """Return four values, by position of the tile, over a mosaic."""
    return np.tile(np.reshape(values, (2, 2)), (shape[0] // 2, shape[1] // 2))


def cfa_tags(pattern, side):
    return (33421, "H", 2, (side, side), True), (33422, "B", side * side, bytes(pattern), True)


# --- DNG, written and read back -------------------------------------------------------------------


@pytest.mark.parametrize("cfa", CFA)
def test_libraw_reads_what_write_dng_wrote(tmp_path, cfa):
    camera, mosaic = replace(SENSOR, cfa=cfa), random_mosaic()
    with rawpy.imread(str(write_dng(tmp_path / "a.dng", mosaic, camera))) as raw:
        np.testing.assert_array_equal(raw.raw_image_visible, to_16_bit(mosaic))
        indices = raw.raw_colors_visible[:2, :2].ravel()
        assert "".join("RGBG"[i] for i in indices) == cfa.name
        assert [raw.black_level_per_channel[i] for i in indices] == [1000, 1010, 1020, 1030]
        assert raw.white_level == 60000
        gains = np.array(raw.camera_whitebalance[:3])
        np.testing.assert_allclose(gains / gains[1], camera.white_balance, rtol=1e-6)
        np.testing.assert_allclose(raw.color_matrix[:, :3], camera.colour_matrix, atol=1e-6)


@pytest.mark.parametrize("camera", [MICROSCOPE, DRONE, SENSOR, SINGULAR, BEYOND], ids=lambda c: c.name)
@pytest.mark.parametrize("cfa", CFA)
def test_read_raw_returns_exactly_the_camera_that_was_written(tmp_path, camera, cfa):
    camera, mosaic = replace(camera, cfa=cfa), random_mosaic()
    before = mosaic.copy()
    frame = read_raw(write_dng(tmp_path / "a.dng", mosaic, camera))
    assert frame.camera == camera
    assert frame.mosaic.dtype == np.float32
    np.testing.assert_array_equal(to_16_bit(frame.mosaic), to_16_bit(mosaic))
    np.testing.assert_array_equal(mosaic, before)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(11, 20), st.integers(11, 20)).map(lambda s: (2 * s[0], 2 * s[1])),
        elements=st.floats(0, 1, width=32),
    )
)
def test_any_mosaic_survives_to_16_bit(tmp_path, mosaic):
    # Zeros to the end look like a file that was cut short.
    frame = read_raw(write_dng(tmp_path / "a.dng", mosaic, DRONE), allow_damaged=True)
    np.testing.assert_array_equal(to_16_bit(frame.mosaic), to_16_bit(mosaic))
    assert np.abs(frame.mosaic - mosaic).max() <= 0.5001 / FULL


gain = st.floats(0.2, 8)
off_diagonal = st.floats(-0.4, 0.4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(gain, gain, gain),
    st.lists(st.tuples(off_diagonal, off_diagonal, off_diagonal), min_size=3, max_size=3),
    st.lists(st.integers(0, 5000), min_size=4, max_size=4),
    st.integers(6000, FULL),
)
def test_other_programs_find_the_standard_form_of_any_sensible_camera(tmp_path, gains, mixing, black, white):
    matrix = tuple(map(tuple, np.array(mixing) + 1.5 * np.eye(3)))
    camera = Camera("x", CFA.GRBG, tuple(b / FULL for b in black), white / FULL, gains, matrix)
    path = write_dng(tmp_path / "a.dng", random_mosaic(), camera)
    assert read_raw(path).camera == camera
    # Without r2l's own note, only the standard tags are left.
    edit_tag(path, 50740, b"\0")
    read = read_raw(path).camera
    expected = standard_form(camera)
    assert read.cfa is camera.cfa
    assert read.black_level == pytest.approx(camera.black_level)
    assert read.white_level == pytest.approx(camera.white_level)
    np.testing.assert_allclose(read.white_balance, expected.white_balance, rtol=1e-4)
    np.testing.assert_allclose(read.colour_matrix, expected.colour_matrix, atol=1e-4)


@pytest.mark.parametrize("camera", [MICROSCOPE, DRONE, SENSOR], ids=lambda c: c.name)
def test_the_standard_form_develops_to_the_same_colours(camera):
    standard = standard_form(camera)
    brightness = np.divide(*(np.multiply(c.colour_matrix, c.white_balance) for c in (camera, standard)))
    np.testing.assert_allclose(brightness, brightness[0, 0], rtol=1e-9)
    assert brightness[0, 0] > 0
    assert min(standard.white_balance) > 0
    assert standard.white_balance[1] == 1
    np.testing.assert_allclose(np.sum(standard.colour_matrix, axis=1), 1)


@pytest.mark.timeout(20)
def test_pages_that_lead_back_to_the_first_have_an_end(tmp_path):
    lead_back(path := write_dng(tmp_path / "a.dng", random_mosaic(), SENSOR))
    assert read_raw(path).camera == SENSOR


@pytest.mark.parametrize(
    ("neutral", "gains"),
    [
        ((1, 4, 1, 1, 1, 3), (4, 1, 3)),
        # None recorded: daylight, for which the matrix that write_dng derives takes the white that was shot.
        ((0, 1, 0, 1, 0, 1), SENSOR.white_balance),
    ],
)
def test_tags_edited_by_another_program_win_over_the_exact_camera(tmp_path, neutral, gains):
    path = write_dng(tmp_path / "a.dng", random_mosaic(), SENSOR)
    edit_tag(path, AS_SHOT_NEUTRAL, neutral)
    camera = read_raw(path).camera
    assert camera.white_balance == pytest.approx(gains, rel=1e-4)
    assert camera.black_level == SENSOR.black_level


def test_a_file_that_says_nothing_gets_neutral_colours_and_all_levels(tmp_path):
    path = tmp_path / "a.dng"
    write_tiff_dng(path, to_16_bit(random_mosaic()), "cfa", *cfa_tags((2, 1, 1, 0), 2))
    camera = read_raw(path).camera
    assert camera.cfa is CFA.BGGR
    assert (camera.black_level, camera.white_level) == ((0,) * 4, 1)
    assert camera.white_balance == (1, 1, 1)
    assert camera.colour_matrix == ((1, 0, 0), (0, 1, 0), (0, 0, 1))


@pytest.mark.parametrize(
    ("mosaic", "complaint"),
    [
        (random_mosaic((24, 33)), "(24, 33)"),
        (random_mosaic((20, 24)), "22 or more"),
        (random_mosaic((24, 24))[None], "(1, 24, 24)"),
        (random_mosaic() + 1, "expected [0, 1]"),
        (random_mosaic() - 1, "expected [0, 1]"),
        (np.full((24, 24), np.nan), "nan"),
    ],
)
def test_write_dng_refuses_what_is_no_mosaic(tmp_path, mosaic, complaint):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        write_dng(tmp_path / "a.dng", mosaic, DRONE)
    assert complaint in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    path = write_dng(tmp_path / "a.dng", random_mosaic(), DRONE)
    before = path.read_bytes()
    resource = pytest.importorskip("resource", reason="Unix only")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.dng"):
            write_dng(path, random_mosaic((600, 600)), DRONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- orientation and margins ----------------------------------------------------------------------

# What EXIF says has to be done to the stored rows and columns to show them upright.
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, 1),
    # Codes that do not exist count as upright.
    0: lambda a: a,
    9: lambda a: a,
}


def sampled(scene, cfa):
    """Return the mosaic of a scene (H, W, 3), site by site."""
    rows, columns = np.indices(scene.shape[:2])
    colours = np.reshape(cfa.value, (2, 2))[rows % 2, columns % 2]
    return np.take_along_axis(scene, colours[..., None], axis=2)[..., 0]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("cfa", CFA)
def test_a_turned_photo_keeps_its_colours_and_black_levels(tmp_path, orientation, cfa):
    camera = replace(SENSOR, cfa=cfa)
    scene = np.random.default_rng(1).random((24, 40, 3), dtype=np.float32)
    path = write_dng(tmp_path / "a.dng", sampled(scene, cfa), camera)
    edit_tag(path, ORIENTATION, orientation)
    frame = read_raw(path)
    upright = TURNS[orientation](scene)
    np.testing.assert_array_equal(to_16_bit(frame.mosaic), to_16_bit(sampled(upright, frame.camera.cfa)))
    black = TURNS[orientation](tiles(camera.black_level, scene.shape))
    np.testing.assert_array_equal(tiles(frame.camera.black_level, upright.shape), black)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_development_by_libraw(tmp_path, orientation):
    down, right = np.mgrid[0:1:48j, 0:1:64j]
    path = write_dng(tmp_path / "a.dng", (0.1 + 0.2 * down**2 + 0.1 * right).astype(np.float32), SENSOR)
    edit_tag(path, ORIENTATION, orientation)
    ours = read_raw(path).mosaic
    with rawpy.imread(str(path)) as raw:
        theirs = raw.postprocess(user_wb=[1, 1, 1, 1], no_auto_bright=True, gamma=(1, 1))
    assert ours.shape == theirs.shape[:2]
    assert np.corrcoef(ours.ravel(), theirs.mean(axis=2).ravel())[0, 1] > 0.99


# --- TIFF, PNG, NPY -------------------------------------------------------------------------------


def save(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix in (".png", ".jpg"):
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values)


EIGHT = (random_mosaic() * 255).astype(np.uint8)
SIXTEEN = to_16_bit(random_mosaic())
PLAIN = {
    "8 bit.png": (EIGHT, EIGHT / 255),
    "16 bit.png": (SIXTEEN, SIXTEEN / FULL),
    "grey and alpha.png": (np.dstack([EIGHT, 255 - EIGHT]), EIGHT / 255),
    "grey in rgb.png": (np.dstack([EIGHT] * 3), EIGHT / 255),
    "grey in rgba.png": (np.dstack([EIGHT] * 3 + [255 - EIGHT]), EIGHT / 255),
    "black and white.png": (EIGHT > 99, EIGHT > 99),
    "8 bit.tif": (EIGHT, EIGHT / 255),
    "16 bit.tiff": (SIXTEEN, SIXTEEN / FULL),
    "big endian.tiff": (SIXTEEN.astype(">u2"), SIXTEEN / FULL),
    "float.TIF": (random_mosaic(), random_mosaic()),
    "8 bit.npy": (EIGHT, EIGHT / 255),
    "16 bit.npy": (SIXTEEN, SIXTEEN / FULL),
    "big endian.npy": (SIXTEEN.astype(">u2"), SIXTEEN / FULL),
    "float32.npy": (random_mosaic(), random_mosaic()),
    "float64.npy": (np.asfortranarray(random_mosaic(), dtype=np.float64), random_mosaic()),
    "smallest.npy": (EIGHT[:2, :2], EIGHT[:2, :2] / 255),
}


@pytest.mark.parametrize("name", PLAIN)
def test_files_without_calibration(tmp_path, name):
    values, expected = PLAIN[name]
    save(tmp_path / name, values)
    with pytest.raises(RawFileError, match=rf"{name}: .*\n.*camera=.*--camera microscope\|drone\|file.json"):
        read_raw(tmp_path / name)
    frame = read_raw(tmp_path / name, MICROSCOPE)
    assert frame.camera is MICROSCOPE
    assert frame.mosaic.dtype == np.float32
    np.testing.assert_allclose(frame.mosaic, expected, rtol=1e-6)
    tensor = frame.tensor()
    assert tuple(tensor.shape) == (1, 1, *expected.shape)
    np.testing.assert_array_equal(tensor[0, 0].numpy(), frame.mosaic)


def test_what_a_file_holds_counts(tmp_path):
    """What a palette PNG shows, and that a DNG is one, whatever its name."""
    Image.fromarray(EIGHT).convert("P").save(tmp_path / "a.png")
    np.testing.assert_allclose(read_raw(tmp_path / "a.png", DRONE).mosaic, EIGHT / 255, rtol=1e-6)
    assert read_raw(write_dng(tmp_path / "a.tif", random_mosaic(), SENSOR)).camera == SENSOR


def test_a_camera_given_replaces_that_of_the_file_and_is_turned_with_it(tmp_path):
    path = write_dng(tmp_path / "a.dng", random_mosaic(), DRONE)
    assert read_raw(path, SENSOR).camera == SENSOR
    edit_tag(path, ORIENTATION, 3)
    turned = read_raw(path, SENSOR).camera
    assert turned.cfa is CFA.BGGR
    assert turned.black_level == SENSOR.black_level[::-1]
    assert turned.white_balance == SENSOR.white_balance


# --- files that are no raw frame ------------------------------------------------------------------


RGB = np.dstack([EIGHT] * 3)
SIXTY = to_16_bit(random_mosaic((60, 60)))
QUAD = (0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2)


def make_xtrans(path):
    pattern = ["RGB".index(letter) for letter in "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG"]
    write_tiff_dng(path, SIXTY, "cfa", *cfa_tags(pattern, 6))


def make_linear(path):
    write_tiff_dng(path, np.dstack([SIXTY] * 3), 34892)


def make_endless_npy(path):
    save(path, SIXTEEN)
    # As long as before.
    shape, endless = b"(24, 32), }      ", b"(9999999, 99998)}"
    path.write_bytes(path.read_bytes().replace(shape, endless))


def endless_tiff(**options):
    def make(path):
        tifffile.imwrite(path, SIXTEEN, metadata=None, **options)
        edit_tag(path, 257, 2**31)

    return make


def lead_back(path):
    """Let the last page of a small TIFF be followed by the first."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        end = max(tag.offset for tag in tiff.pages.first.tags) + 12
    content[end : end + 4] = content[4:8]
    path.write_bytes(content)


def make_16_bit_colour_png(path):
    # Pillow does not write this kind: take a header and no picture, which is refused before.
    Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)


def holding(values):
    return lambda path: save(path, values)


def with_value(value):
    mosaic = random_mosaic()
    mosaic[3, 4] = value
    return holding(mosaic)


def dng(camera=SENSOR, white=60000):
    def make(path):
        edit_tag(write_dng(path, SIXTY / np.float32(FULL), camera), 50717, white)

    return make


def cut(make, count):
    def made(path):
        make(path)
        path.write_bytes(path.read_bytes()[:-count])

    return made


def make_text(path):
    path.write_text("not a photo\n" * 500)


CUT, OTHER_SENSOR = "copy it again", "of a Bayer sensor"
GREY, READABLE = "Give a single-channel mosaic", "readable raw file"
COLOURED, STACK = holding(np.dstack([EIGHT, EIGHT, 255 - EIGHT])), holding(random_mosaic((6, 24, 24)))
CUT_PLAIN, OBJECTS = cut(holding(SIXTEEN), 40), holding(np.array([{"a": 1}], dtype=object))
BAD = {
    "missing.dng": (lambda path: None, "No such file", READABLE),
    "folder.dng": (Path.mkdir, "directory", "the raw files in it, such as "),
    "empty.dng": (Path.touch, "empty", CUT),
    "empty.png": (Path.touch, "empty", CUT),
    "text.dng": (make_text, "headerless", "layout=RawLayout"),
    "text.npy": (make_text, "headerless", "layout=RawLayout"),
    "text.tif": (make_text, "no readable TIFF", CUT),
    "photo.jpg": (holding(RGB), "a JPEG picture, already developed", OTHER_SENSOR),
    "unknown.dng": (lambda path: write_tiff_dng(path, EIGHT[:8, :8], "cfa"), "no known layout", OTHER_SENSOR),
    "xtrans.dng": (make_xtrans, "X-Trans", OTHER_SENSOR),
    "linear.dng": (make_linear, "already demosaiced", "apps that save plain (Bayer) DNG"),
    "quad.dng": (lambda p: write_tiff_dng(p, SIXTY, "cfa", *cfa_tags(QUAD, 4)), "R R G G", OTHER_SENSOR),
    "white.dng": (dng(white=900), "white_level", OTHER_SENSOR),
    "layout.dng": (dng(camera=replace(SENSOR, cfa=CFA.GBRG)), "GBRG", "the camera that fits"),
    "cut.dng": (cut(dng(), 1), "truncated, 1 byte", CUT),
    "cut.png": (CUT_PLAIN, "no readable PNG", CUT),
    "cut.npy": (CUT_PLAIN, "no readable NPY", CUT),
    "cut.tif": (CUT_PLAIN, "no readable TIFF", CUT),
    "pickle.npy": (OBJECTS, "no readable NPY", CUT),
    "endless.npy": (make_endless_npy, "no readable NPY file (mmap length is greater", CUT),
    "endless.tif": (endless_tiff(), "tags that promise 137438953472 bytes, in a file of", CUT),
    "endless zlib.tif": (endless_tiff(compression="zlib"), "tags that promise 137438953472 bytes", CUT),
    "looped.tif": (lambda p: lead_back(holding(EIGHT[:, :31])(p) or p), "more than 200 pages", CUT),
    "deep colour.png": (make_16_bit_colour_png, "16-bit PNG", GREY),
    "colour.png": (COLOURED, "colour picture", GREY),
    "colour.tif": (COLOURED, "colour picture", GREY),
    "stack.npy": (STACK, "(6, 24, 24)", GREY),
    "stack.tif": (STACK, "(6, 24, 24)", GREY),
    "odd.png": (holding(EIGHT[:23]), "23 x 32", GREY),
    "odd.npy": (holding(EIGHT[:, :31]), "24 x 31", GREY),
    "odd.tif": (holding(EIGHT[:1, :1]), "1 x 1", GREY),
    "none.npy": (holding(EIGHT[:0]), "0 x 32", GREY),
    "signed.npy": (holding(SIXTEEN.astype(np.int32)), "int32", GREY),
    "complex.npy": (holding(random_mosaic().astype(complex)), "complex", GREY),
    "nan.npy": (with_value(np.nan), "not finite", GREY),
    "infinite.tif": (with_value(np.inf), "not finite", GREY),
    "above.npy": (with_value(1.5), "beyond [0, 1]", GREY),
    "below.tif": (with_value(-0.5), "beyond [0, 1]", GREY),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_reason_and_remedy(tmp_path, capfd, name):
    make, reason, remedy = BAD[name]
    path = tmp_path / name
    make(path)
    capfd.readouterr()
    plain = path.suffix in (".png", ".npy", ".tif") or name == "layout.dng"
    with pytest.raises(RawFileError) as caught:
        read_raw(path, SENSOR if plain else None)
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert remedy in message
    assert len(message.splitlines()) == 2
    assert capfd.readouterr() == ("", "")


def shorten(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    return path


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_dng_is_never_filled_up(tmp_path, kept):
    path = write_dng(tmp_path / "a.dng", random_mosaic((200, 300)), SENSOR)
    with pytest.raises(RawFileError, match="copy it again"):
        read_raw(shorten(path, kept))


def test_the_error_passes_between_processes(tmp_path):
    error = RawFileError(tmp_path / "a.dng", "the reason", "the remedy")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (RawFileError, str(error))


# --- cameras by name ------------------------------------------------------------------------------


def test_load_camera(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(SENSOR.to_dict()))
    assert load_camera("microscope") is MICROSCOPE
    assert load_camera("Drone") is DRONE
    assert load_camera(path) == load_camera(str(path)) == SENSOR
    assert load_camera(write_dng(tmp_path / "a.dng", random_mosaic(), DRONE)) == DRONE
    with pytest.raises(RawFileError, match="No such file"):
        load_camera(tmp_path / "b.dng")


COUNTS = {
    "name": "data sheet",
    "cfa": "GBRG",
    "black_level": 256,
    "white_level": 4095,
    "white_balance": [1.9, 1, 1.6],
    "colour_matrix": [[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0, -0.5, 1.5]],
}
LEVELS = {"black_level": [256] * 4}
WRONG_COUNTS = [
    ({"bits": 12, "full_scale": 65535}, "one of them"),
    ({"bits": 18}, "1 to 16"),
    ({"bits": 12.5}, "1 to 16"),
    ({"bits": 10}, "at most 1023"),
    ({"bits": 12, "black_level": 4095}, "not above"),
    ({"bits": 12, "black_level": [1, 2]}, "2 values, expected 4"),
    ({"full_scale": "x"}, "camera description"),
    ({"full_scale": 0}, "expected more than 0"),
    ({"bits": 12, "blackness": 3}, "unknown keys: blackness"),
    (LEVELS, "these are counts, where fractions of the container's full scale are expected"),
    (LEVELS, "Camera.from_counts(..., bits=12) takes them, and a JSON file with the entry"),
]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "unknown camera"),
        ("{", "no camera description"),
        ("[1, 2]", "no camera description"),
        ('{"name": "x"}', "missing or unknown keys: black_level"),
        (json.dumps({**SENSOR.to_dict(), "cfa": 3}), "no camera description"),
        (json.dumps({**SENSOR.to_dict(), "cfa": "RGBG"}), "RGGB"),
        (json.dumps({**SENSOR.to_dict(), "white_level": 0}), "not above the black level"),
        (json.dumps({**SENSOR.to_dict(), "colour_matrix": None}), "no camera description"),
        (json.dumps({**SENSOR.to_dict(), "white_level": 10**400}), "too large"),
        (json.dumps({**SENSOR.to_dict(), "name": ["a", "b"]}), "name is ['a', 'b']"),
        ("[" * 100_000, "recursion"),
        *((json.dumps(COUNTS | entries), words) for entries, words in WRONG_COUNTS),
    ],
)
def test_load_camera_says_what_would_do(tmp_path, text, reason):
    path = tmp_path / "camera.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="microscope, drone") as caught:
        load_camera(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "black", "white"),
    [
        ({"bits": 12}, 256 / FULL, 4095 / FULL),
        ({"bits": 14, "white_level": 15520}, 256 / FULL, 15520 / FULL),
        ({"bits": 8, "black_level": 16, "white_level": 255}, 16 / 255, 1.0),
        ({"full_scale": 4095}, 256 / 4095, 1.0),
        ({"full_scale": 1.0, "black_level": 0.1, "white_level": 0.9}, 0.1, 0.9),
    ],
)
def test_a_description_takes_the_numbers_of_a_data_sheet(tmp_path, entries, black, white):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(COUNTS | entries))
    camera = load_camera(path)
    assert camera.black_level == pytest.approx((black,) * 4)
    assert camera.white_level == pytest.approx(white)
    # As it is kept, levels are fractions again.
    assert Camera.from_dict(camera.to_dict()) == camera


@pytest.mark.parametrize("scale", [8, 12, 14, 16])
def test_a_sensors_counts_become_light_whatever_its_bits(tmp_path, scale):
    counts = {name: COUNTS[name] for name in ("white_balance", "colour_matrix")}
    white = 2**scale - 1
    camera = Camera.from_counts("x", CFA.RGGB, white // 16, bits=scale, **counts)
    pixels = np.full((4, 4), white // 16, np.uint8 if scale == 8 else np.uint16)
    pixels[:2] = white
    np.save(tmp_path / "frame.npy", pixels)
    linear = StaticISP(camera).stages(read_raw(tmp_path / "frame.npy", camera).tensor())
    assert linear["black_level"][..., :2, :].eq(1).all()
    assert linear["black_level"][..., 2:, :].abs().max() < 1e-6


# --- real files -----------------------------------------------------------------------------------


def test_a_real_photo_is_read_as_libraw_reads_it_and_survives_being_written(sample_raws, tmp_path):
    path = sample_raws / "colorchart.dng"
    frame = read_raw(path)
    with rawpy.imread(str(path)) as raw:
        np.testing.assert_array_equal(to_16_bit(frame.mosaic), raw.raw_image_visible)
    camera = frame.camera
    assert frame.mosaic.shape == (1156, 1734)
    assert camera.name == "Canon EOS Kiss X4"
    assert camera.cfa is CFA.RGGB
    assert camera.black_level == (2056 / FULL,) * 4
    assert camera.white_level == 15000 / FULL
    # AsShotNeutral is 1.000 2.477 1.462.
    assert camera.white_balance == pytest.approx((2.477, 1, 2.477 / 1.462), rel=1e-5)
    np.testing.assert_allclose(np.sum(camera.colour_matrix, axis=1), 1)
    # ColorMatrix1 of the file, worked out by hand: inv(rows to 1 (ColorMatrix1 @ sRGB to XYZ)).
    expected = [[1.818, -0.964, 0.147], [-0.229, 1.774, -0.545], [-0.020, -0.468, 1.488]]
    np.testing.assert_allclose(camera.colour_matrix, expected, atol=6e-4)
    again = read_raw(write_dng(tmp_path / "a.dng", frame.mosaic, camera))
    assert again.camera == camera
    np.testing.assert_array_equal(again.mosaic, frame.mosaic)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_photo_is_refused(sample_raws, tmp_path, kept):
    path = shutil.copy(sample_raws / "colorchart.dng", tmp_path / "cut.dng")
    with pytest.raises(RawFileError, match="truncated"):
        read_raw(shorten(path, kept))


@pytest.mark.parametrize(("name", "camera", "least"), [("drone", DRONE, 16), ("microscopy", MICROSCOPE, 38)])
def test_demo_tiles(sample_raws, name, camera, least):
    frame = read_raw(sample_raws / f"raw_{name}_tile.png", camera)
    assert frame.mosaic.shape == (256, 256)
    assert frame.mosaic.min() == pytest.approx(least / 255)
