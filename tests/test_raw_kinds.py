"""Raw files of every kind: what a DNG's tags say, how pixels are packed, and what must be refused."""

import json
import os
import subprocess
import sys
import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile
from colour.temperature import xy_to_CCT
from PIL import Image

from r2l.camera import CFA
from r2l.datasets import RawFolder
from r2l.rawfile import RawFileError, RawFileWarning, RawLayout, read_raw
from r2l.rawfile.dng_tags import XYZ_FROM_SRGB, _kelvin
from tests.conftest import invoke
from tests.test_rawfile import FULL, SENSOR, cfa_tags, edit_tag, tiles

WHITE, BLACK = 4000, (100, 110, 120, 130)
#: XYZ to camera colours.
CM = np.array([[0.9, -0.3, -0.1], [-0.4, 1.2, 0.2], [-0.1, 0.2, 0.6]])
CM_WARM = np.array([[1.1, -0.2, -0.2], [-0.5, 1.3, 0.1], [-0.2, 0.3, 0.5]])
#: Layout and levels of a page, as tags.
LEVELS = [*cfa_tags((0, 1, 1, 2), 2), (50713, "H", 2, (2, 2), True)]
LEVELS += [(50714, "H", 4, BLACK, True), (50717, "I", 1, WHITE, True)]
#: Linear light at each pixel, in [0, 1].
LIGHT = np.random.default_rng(1).uniform(0.02, 0.95, (48, 64))


def steps(black=None, white=WHITE):
    black = tiles(BLACK) if black is None else black
    return np.round(black + LIGHT * (white - black)).astype(np.uint16)


def rationals(values, denominator=10**6):
    return [n for v in np.ravel(values) for n in (round(float(v) * denominator), denominator)]


def write(path, values=None, tags=(), drop=(), **options):
    """Write a DNG of an RGGB sensor; ``tags`` replace or add to those that it has."""
    standard = [
        *LEVELS,
        (50706, "B", 4, bytes((1, 4, 0, 0)), True),
        (50708, "s", 0, "a sensor", True),
        (50721, "2i", 9, rationals(CM), True),
        (50728, "2I", 3, rationals((0.5, 1, 0.6)), True),
        (50778, "H", 1, 21, True),
    ]
    new = {tag[0] for tag in tags} | set(drop)
    values = steps() if values is None else values
    options = {"photometric": "cfa", "metadata": None} | options
    with tifffile.TiffWriter(path) as tiff:
        tags = sorted([*(t for t in standard if t[0] not in new), *tags])
        tiff.write(values, extratags=tags, **options)
    return path


def linear(frame):
    black = tiles(frame.camera.black_level, frame.mosaic.shape)
    return (frame.mosaic - black) / (frame.camera.white_level - black)


def assert_light(path, light=LIGHT, **options):
    frame = read_raw(path, **options)
    assert frame.camera.cfa is CFA.RGGB
    np.testing.assert_allclose(linear(frame), light, atol=1.5 / (WHITE - 200))
    return frame


# --- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [(1, 1), (1, 2), (2, 1), (2, 2), (4, 4), (6, 2), (3, 3)])
def test_a_black_level_of_any_repeat_that_is_constant_by_tile(tmp_path, repeat):
    # Odd repeats are of one level along that side.
    base = np.reshape(BLACK, (2, 2))[: 2 - repeat[0] % 2, : 2 - repeat[1] % 2]
    tile = np.tile(base, (repeat[0] // base.shape[0], repeat[1] // base.shape[1]))
    black = tiles(np.broadcast_to(base, (2, 2)))
    tags = [(50713, "H", 2, repeat, True), (50714, "H", tile.size, tile.ravel().tolist(), True)]
    assert_light(write(tmp_path / "a.dng", steps(black), tags))


def test_deltas_of_rows_and_columns_are_part_of_the_black_level(tmp_path):
    rows, columns = np.linspace(0, 90, 48), np.tile([0.0, 40.0], 32)
    black = tiles(BLACK) + rows[:, None] + columns
    tags = [(50716, "2i", 48, rationals(rows), True), (50715, "2i", 64, rationals(columns), True)]
    assert_light(write(tmp_path / "a.dng", steps(black), tags))
    tags[0] = (50716, "2i", 48, rationals(20 * rows), True)
    path = write(tmp_path / "a.dng", tags=tags)
    with pytest.raises(RawFileError, match="differs by"):
        read_raw(path)


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1), (5, 2)])
def test_layout_and_levels_begin_with_the_active_area_which_is_cut_even(tmp_path, corner, odd):
    top, left = corner
    whole = np.full((48 + top + 4, 64 + left + 6), 30, np.uint16)
    whole[top : top + 48, left : left + 64] = steps()
    area = (50829, "I", 4, (top, left, top + 48 + odd, left + 64 + odd), True)
    assert_light(write(tmp_path / "a.dng", whole, [area]))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_samples_go_through_the_linearization_table(tmp_path, compression):
    table = np.round(np.linspace(0, 1, 256) ** 2 * WHITE).astype(int)
    stored = np.abs(table[None, None] - steps()[..., None]).argmin(-1).astype(np.uint16)
    tag = (50712, "H", 256, table.tolist(), True)
    path = write(tmp_path / "a.dng", stored, [tag], compression=compression)
    light = (table[stored] - tiles(BLACK)) / (WHITE - tiles(BLACK))
    np.testing.assert_allclose(linear(read_raw(path)), light, atol=1e-4)


# --- colours --------------------------------------------------------------------------------------


def colour_matrix(camera_from_xyz):
    camera_from_srgb = camera_from_xyz @ XYZ_FROM_SRGB
    return np.linalg.inv(camera_from_srgb / camera_from_srgb.sum(axis=1, keepdims=True))


def test_the_white_of_a_chromaticity(tmp_path):
    x, y = 0.34, 0.36
    tag = (50729, "2I", 2, rationals((x, y)), True)
    camera = read_raw(write(tmp_path / "a.dng", tags=[tag], drop=[50728])).camera
    neutral = CM @ [x / y, 1, (1 - x - y) / y]
    assert camera.white_balance == pytest.approx(neutral[1] / neutral, rel=1e-5)
    np.testing.assert_allclose(camera.colour_matrix, colour_matrix(CM), rtol=1e-5)


@pytest.mark.parametrize("xy", [(0.44, 0.41), (0.38, 0.38), (0.3127, 0.329), (0.28, 0.29)])
def test_between_two_illuminants_the_matrix_follows_the_white(tmp_path, xy):
    # Source of the rule: DNG specification, linear in the reciprocal of the temperature.
    temperature = float(xy_to_CCT(np.array(xy), "McCamy 1992"))
    assert _kelvin(xy) == pytest.approx(temperature, rel=1e-6)
    share = np.clip((1 / temperature - 1 / 6504) / (1 / 2856 - 1 / 6504), 0, 1)
    between = share * CM_WARM + (1 - share) * CM
    neutral = between @ [xy[0] / xy[1], 1, (1 - sum(xy)) / xy[1]]
    tags = [
        (50721, "2i", 9, rationals(CM_WARM), True),
        (50722, "2i", 9, rationals(CM), True),
        (50778, "H", 1, 17, True),
        (50779, "H", 1, 21, True),
        (50728, "2I", 3, rationals(neutral / neutral.max()), True),
    ]
    camera = read_raw(write(tmp_path / "a.dng", tags=tags)).camera
    np.testing.assert_allclose(camera.colour_matrix, colour_matrix(between), atol=2e-4)


@pytest.mark.parametrize(
    ("signed", "belongs"),
    [({}, 1), ({50931: "a", 50932: b"a\0"}, 1), ({50931: "a"}, 0), ({50931: "a", 50932: b"ab"}, 0)],
)
def test_analog_balance_and_calibration_of_the_profile_stand_before_the_matrix(tmp_path, signed, belongs):
    # Source of the rule: DNG specification, CameraCalibrationSignature; absent, it is empty.
    calibration = np.array([[1.1, 0.05, 0], [0, 0.95, 0], [0.02, 0, 1.2]])
    tags = [(50723, "2i", 9, rationals(calibration), True), (50727, "2I", 3, rationals((1.5, 1, 2)), True)]
    kinds = {50931: ("s", 0), 50932: ("B", 2)}
    tags += [(code, *kinds[code], text, True) for code, text in signed.items()]
    camera = read_raw(write(tmp_path / "a.dng", tags=tags)).camera
    want = colour_matrix(np.diag((1.5, 1, 2)) @ (calibration if belongs else np.eye(3)) @ CM)
    np.testing.assert_allclose(camera.colour_matrix, want, atol=1e-5)


# --- which picture ----------------------------------------------------------------------------------


def write_pages(path, *pages):
    """Write a DNG of several pages, each (values, subfile type)."""
    write(path, pages[0][0], subfiletype=pages[0][1])
    with tifffile.TiffWriter(path, append=True) as tiff:
        for values, kind in pages[1:]:
            tiff.write(values, subfiletype=kind, metadata=None, photometric="cfa", extratags=LEVELS)
    return path


def test_of_several_exposures_one_is_named(tmp_path):
    path = write_pages(tmp_path / "a.dng", (steps(), 0), (steps() // 2, 0), (steps()[:24], 0))
    with pytest.raises(RawFileError, match=r"2 exposures of 64 x 48 pixels\.\nSay which: frame=0 to 1"):
        read_raw(path)
    assert_light(path, frame=0)
    np.testing.assert_array_equal(np.round(read_raw(path, frame=1).mosaic * FULL), steps() // 2)
    with pytest.raises(RawFileError, match="no frame 2: there are 2"):
        read_raw(path, frame=2)


def test_reduced_pictures_are_no_raw_pictures_and_one_that_is_cut_spoils_nothing(tmp_path):
    assert_light(write_pages(tmp_path / "a.dng", (steps(), 0), (steps()[:24, :32], 1)))
    path = write(tmp_path / "a.dng")
    with tifffile.TiffWriter(path, append=True) as tiff:
        tiff.write(np.zeros((40, 40), np.uint8), subfiletype=1, metadata=None)
    path.write_bytes(path.read_bytes()[:-700])
    assert_light(path)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_need_not_be_utf_8(tmp_path):
    path = write(tmp_path / "a.dng")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.dng")
    os.rename(path, odd)
    assert_light(odd)


CYAN = (33422, "B", 4, bytes((0, 1, 3, 2)), True)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([], "a monochrome sensor's picture"),
        ([CYAN], "unknown colour 3"),
        ([CYAN, (50710, "B", 4, bytes((0, 1, 2, 3)), True)], "R G cyan B"),
        ([(50711, "H", 1, 2, True)], "staggered"),
        ([(50829, "I", 4, (3, 0, 4, 64), True)], "an active area of 1 x 64 pixels"),
        ([(50713, "H", 2, (4, 4), True), (50714, "H", 16, [*range(100, 116)], True)], "repeats every 4 x 4"),
        # Of a wrong length.
        ([(50713, "H", 1, 2, True)], "a tag 50713 of 1 values"),
        ([(50713, "H", 2, (0, 2), True)], "4 black levels for a tile of 0 x 2"),
        ([(33421, "H", 1, 2, True)], "a tag 33421 of 1 values"),
    ],
)
def test_what_is_no_bayer_mosaic_is_called_what_it_is(tmp_path, tags, message):
    path = write(tmp_path / "a.dng", tags=tags)
    if "monochrome" in message:
        edit_tag(path, 262, 34892)
    with pytest.raises(RawFileError, match=message):
        read_raw(path)


# --- compressed and floating-point ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"compression": "zlib", "tile": (16, 32)},
        {"compression": "JPEGXL_DNG", "compressionargs": {"lossless": True}},
    ],
    ids=str,
)
def test_each_compression_gives_back_the_samples(tmp_path, options):
    frame = assert_light(write(tmp_path / "a.dng", **options))
    np.testing.assert_array_equal(np.round(frame.mosaic * FULL), steps())


def with_strip(path, data, compression):
    """Replace the picture of a DNG by other bytes."""
    write(path, tags=[])
    start = path.stat().st_size
    with path.open("ab") as file:
        file.write(data)
    for code, value in ((273, start), (279, len(data)), (259, compression)):
        edit_tag(path, code, value)
    return path


def test_lossless_jpeg(tmp_path):
    data = imagecodecs.ljpeg_encode(steps(), bitspersample=12)
    ordinary = imagecodecs.jpeg8_encode((steps() >> 4).astype(np.uint8), level=100)
    assert_light(with_strip(tmp_path / "a.dng", data, 7))
    with pytest.raises(RawFileError, match="an ordinary JPEG"):
        read_raw(with_strip(tmp_path / "a.dng", ordinary, 7))
    with pytest.raises(RawFileError, match="truncated, 60 bytes can't hold 3072 pixels"):
        read_raw(with_strip(tmp_path / "a.dng", data[:60], 7))


WITHOUT = """
import sys
sys.modules["imagecodecs"] = None
from r2l.camera import DRONE
from r2l.rawfile import read_raw
try:
    read_raw(sys.argv[1], DRONE)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(("name", "says"), [("a.dng", "compressed by LZW"), ("a.tif", "without compression")])
def test_what_needs_imagecodecs_names_the_extra(tmp_path, name, says):
    path = write(tmp_path / "a.dng", compression="lzw")
    if name == "a.tif":
        path = tmp_path / name
        tifffile.imwrite(path, steps(), compression="lzw")
    done = subprocess.run([sys.executable, "-c", WITHOUT, path], capture_output=True, text=True, check=True)
    assert "pip install 'r2l[codecs]'" in done.stdout
    assert says in done.stdout


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"predictor": 3}], ids=str)
def test_floating_point_keeps_every_value(tmp_path, options):
    fine = np.linspace(0.05, 0.06, LIGHT.size, dtype="<f4").reshape(LIGHT.shape)
    fine[0, 0] = 1
    tags = [(50714, "2I", 4, rationals((0.05,) * 4), True), (50717, "I", 1, 1, True)]
    options = {"compression": "zlib"} | options if "predictor" in options else options
    frame = read_raw(write(tmp_path / "a.dng", fine, tags, **options))
    np.testing.assert_array_equal(frame.mosaic, fine)
    assert frame.camera.black_level == pytest.approx((0.05,) * 4)
    assert frame.camera.white_level == 1.0
    with pytest.raises(RawFileError, match="below 0"):
        read_raw(write(tmp_path / "a.dng", (LIGHT - 0.5).astype("<f4"), tags, **options))


# --- damaged --------------------------------------------------------------------------------------


def test_bytes_that_contradict_the_tags(tmp_path):
    path = write(tmp_path / "a.dng")
    for counts in (LIGHT.size * 4, LIGHT.size * 2 - 64):
        path.write_bytes(path.read_bytes() + bytes(LIGHT.size * 4))
        edit_tag(path, 279, counts)
        with pytest.raises(RawFileError, match=f"{counts} bytes for 64 x 48 pixels of 16 bits"):
            read_raw(path)
    edit_tag(path, 279, LIGHT.size * 2 + 64)  # padded
    assert_light(path)
    edit_tag(path, 258, 10)
    with pytest.raises(RawFileError, match="of 10 bits, which are 3840"):
        read_raw(path)


def test_a_frame_that_ends_in_zeros_is_truncated(tmp_path):
    values = steps()
    values[20:] = 0
    path = write(tmp_path / "a.dng", values)
    with pytest.raises(RawFileError, match="all zeros below row 20 of 48"):
        read_raw(path)
    assert read_raw(path, allow_damaged=True).mosaic.shape == (48, 64)
    assert_light(write(tmp_path / "black.dng", np.where(LIGHT > 2, 0, steps())))


@pytest.mark.parametrize("suffix", [".raw", ".dat", ".nef", ".arw", ".dng"])
# By which LibRaw takes a file for some camera's.
@pytest.mark.parametrize("length", [786432, 4147200, 311696, 10134608])
def test_nothing_is_read_by_its_length(tmp_path, suffix, length):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(np.random.default_rng(length).bytes(length))
    with pytest.raises(RawFileError, match=r"headerless.*\n.*layout=RawLayout"):
        read_raw(path)


def test_a_tiff_of_pages_without_end_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(201):
            tiff.write(steps()[:16, :16], metadata=None)
    with pytest.raises(RawFileError, match="more than 200 pages"):
        read_raw(path, SENSOR)


# --- headerless frames ----------------------------------------------------------------------------


def pack(values, packing):
    """Pack bit by bit: an implementation of its own, slow and plain."""
    rows = values.astype(int)
    if packing.startswith("u"):
        kind = {"u8": "u1", "u16l": "<u2", "u16b": ">u2"}[packing[:4]]
        return (rows << 4 if packing.endswith("left") else rows).astype(kind).tobytes()
    bits = int(packing[4:6])
    if packing.endswith("p"):
        stream = [(v >> b) & 1 for v in rows.ravel() for b in range(bits)]
        return np.packbits(np.array(stream, np.uint8), bitorder="little").tobytes()
    out, group = bytearray(), {10: 4, 12: 2, 14: 4}[bits]
    for pixels in rows.reshape(-1, group):
        if packing == "mono12packed":
            a, b = pixels
            out += bytes((a >> 4, (b & 15) << 4 | a & 15, b >> 4))
            continue
        out += bytes(int(v) >> (bits - 8) for v in pixels)
        low = sum((int(v) & (2 ** (bits - 8) - 1)) << ((bits - 8) * i) for i, v in enumerate(pixels))
        out += low.to_bytes(group * (bits - 8) // 8, "little")
    return bytes(out)


PACKINGS = {"u8": 8, "u16le": 12, "u16be": 12, "u16le_left": 12, "u16be_left": 12, "mipi10": 10}
PACKINGS |= {"mipi12": 12, "mipi14": 14, "mono12p": 12, "mono12packed": 12}


@pytest.mark.filterwarnings("ignore::r2l.rawfile.RawFileWarning")
@pytest.mark.parametrize("packing", PACKINGS)
def test_each_packing_is_unpacked(tmp_path, packing):
    bits, path = PACKINGS[packing], tmp_path / "a.raw"
    values = np.random.default_rng(0).integers(0, 2**bits, (600, 64))
    path.write_bytes(pack(values, packing))
    layout = RawLayout(64, 600, bits, packing, cfa="rggb")
    stored = values << 4 if packing.endswith("left") else values
    full = 255 if packing == "u8" else FULL
    frame = read_raw(path, SENSOR, layout)
    np.testing.assert_array_equal(np.round(frame.mosaic * full), stored)
    # With a head, and rows with a gap.
    gap = bytes(7)
    path.write_bytes(bytes(100) + b"".join([pack(row[None], packing) + gap for row in values]))
    spaced = RawLayout(64, 600, bits, packing, offset=100, stride=layout.row_bytes + 7)
    np.testing.assert_array_equal(read_raw(path, SENSOR, spaced).mosaic, frame.mosaic)


def test_a_description_lies_beside_the_file(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(pack(steps(), "u16le"))
    beside = tmp_path / "a.raw.json"
    beside.write_text(json.dumps({"width": 64, "height": 48, "bits": 12, "cfa": "RGGB"}))
    assert read_raw(path, SENSOR).mosaic.shape == (48, 64)
    with pytest.raises(RawFileError, match="does not say which camera"):
        read_raw(path)
    beside.write_text('{"wide": 64}')
    with pytest.raises(RawFileError, match="expected the keys width, height"):
        read_raw(path, SENSOR)


def test_frames_without_a_header_on_the_command_line_and_in_a_folder(tmp_path):
    camera, photos = tmp_path / "camera.json", tmp_path / "photos"
    camera.write_text(json.dumps(SENSOR.to_dict()))
    for name, frame in {"a": steps(), "b": steps()[::-1]}.items():
        (photos / name).mkdir(parents=True)
        (photos / name / "1.raw").write_bytes(pack(frame, "mono12p"))
    write(photos / "a" / "2.dng")
    sizes = ["--width", "64", "--height", "48", "--bits", "12", "--packing", "mono12p"]
    command = ["develop", str(photos / "a" / "1.raw"), "--camera", str(camera), "-o", str(tmp_path)]
    done = invoke(*command, *sizes)
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "1_bi-s-ga.png") as picture:
        assert picture.size == (64, 48)
    done = invoke(*command, *sizes[:4])
    assert (done.exit_code, done.output) == (2, "error: a frame without a header also needs --bits\n")

    data = RawFolder(photos, camera=SENSOR, layout=RawLayout(64, 48, 12, "mono12p"))
    assert [len(data), data.classes] == [3, ("a", "b")]
    for number, frame in {0: steps(), 2: steps()[::-1]}.items():
        np.testing.assert_array_equal(np.round(data[number]["raw"][0] * FULL), frame)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"height": 50}, "6144 bytes, and 64 x 50 pixels as u16le take 6400"),
        ({"bits": 10}, "values of more than 10 bits"),
        ({"packing": "u16le_left"}, "values of more than 12 bits"),
        ({"cfa": "BGGR"}, "its layout is BGGR, and that of the camera 'a sensor' is RGGB"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, layout, message):
    path = tmp_path / "a.raw"
    path.write_bytes(pack(steps(), "u16le"))
    with pytest.raises(RawFileError, match=message):
        read_raw(path, SENSOR, RawLayout(**{"width": 64, "height": 48, "bits": 12} | layout))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "mipi9"}, "choose from u8, u16le"),
        ({"width": 63}, "expected even numbers"),
        ({"packing": "mipi10", "width": 66, "bits": 10}, "packs 4 pixels"),
        ({"packing": "mipi12", "bits": 10}, "mipi12 has 12"),
        ({"bits": 17}, "u16le has 1 to 16"),
        ({"stride": 100}, "at least the 128 bytes"),
        ({"cfa": "RGBW"}, "unknown CFA layout"),
        ({"width": "64"}, "expected a whole number"),
    ],
)
def test_a_layout_that_can_not_be(options, message):
    with pytest.raises(ValueError, match=message):
        RawLayout(**{"width": 64, "height": 48, "bits": 12} | options)


# --- a look at the data ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("low", steps() // 10, "black level lies above"),
        ("flat", np.full((48, 64), 900, np.uint16), "pixels are alike"),
        ("dim", steps(white=160), "nothing in it comes near"),
        ("full", np.minimum(steps(), 3000), "saturates below"),
        ("far", steps() + 5000, "far below its darkest"),
        ("ordinary", steps(), None),
    ],
)
def test_levels_that_contradict_the_pixels_are_said_once(tmp_path, name, values, words):
    path = write(tmp_path / "a.dng", values, [(50708, "s", 0, name, True)])
    if words:
        with pytest.warns(RawFileWarning, match=f"{name}: .*{words}"):
            read_raw(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_raw(path)
