"""r2l check: cameras against a report of tolerances; exit status 0 inside, 1 outside, 2 error."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from r2l.camera import CFA, DRONE
from r2l.drift.forensics import ToleranceReport, tolerance_report
from r2l.rawfile import write_dng
from tests.conftest import invoke
from tests.test_forensics import Bright, flat_frames

DARK = replace(DRONE, black_level=(0.3,) * 4)
check = partial(invoke, "check")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    frames = flat_frames(np.linspace(0.3, 0.9, 80), DRONE)
    found = tolerance_report(Bright(0.45), frames, points=9, refine=1, name="brightness", progress=False)
    return found.save(tmp_path_factory.mktemp("report") / "tolerances.json")


def camera_file(folder, camera, name="camera"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(camera.to_dict()))
    return path


def test_the_camera_itself_is_inside(report):
    result = check("--tolerances", report, "--camera", "drone")
    assert result.exit_code == 0, result.output
    assert "drone: inside" in result.output
    for word in ("brightness", "red_gain", "2.867", "of the range", "unknown"):
        assert word in result.output


@pytest.mark.parametrize("cfa", [CFA.RGGB, CFA.BGGR])
def test_a_dng_of_the_camera_is_inside(report, tmp_path, cfa):
    # Turned by half a turn, each level goes with its colour.
    levels = DRONE.black_level if cfa is CFA.RGGB else DRONE.black_level[::-1]
    camera = replace(DRONE, cfa=cfa, black_level=levels)
    mosaic = np.full((32, 32), 0.3, dtype=np.float32)
    mosaic[9, 12] = 1.0
    result = check("--tolerances", report, "--camera", write_dng(tmp_path / "photo.dng", mosaic, camera))
    assert result.exit_code == 0, result.output
    # One of 1,024 sites is hot.
    assert "measured in this photo: defective pixels 0.098%, row noise 0.000%" in result.output


def test_another_camera_is_outside_and_is_told_where(report, tmp_path):
    dark = camera_file(tmp_path, DARK, "dark")
    result = check("--tolerances", report, "--camera", "drone", "--camera", dark)
    assert result.exit_code == 1
    assert "drone: inside" in result.output
    assert f"{dark}: outside" in result.output
    lines = result.output.split(str(dark))[1].splitlines()
    row = next(line for line in lines if line.startswith("black_level "))
    assert "0.3" in row
    assert row.endswith("outside")


def test_errors_are_one_line_and_status_2(report, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    broken = tmp_path / "broken.dng"
    broken.write_bytes(b"II*\0nothing")
    grey = camera_file(tmp_path, replace(DRONE, colour_matrix=((1.0, 1.0, 1.0),) * 3), "grey")
    cases = [
        ((tmp_path / "none.json", "drone"), "none.json"),
        ((other, "drone"), "no tolerance report"),
        ((report, "phone"), "choose from microscope, drone"),
        ((report, broken), "broken.dng"),
        ((report, grey), "no inverse"),
        ((report, tmp_path / "none.dng"), "none.dng"),
    ]
    for (file, camera), message in cases:
        result = check("--tolerances", file, "--camera", camera)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "Traceback" not in result.output
    # An error and a camera outside: the error counts.
    both = check("--tolerances", report, "--camera", camera_file(tmp_path, DARK, "dark"), "--camera", "phone")
    assert both.exit_code == 2
    assert "outside" in both.output
    assert check("--tolerances", report).exit_code == 2


def test_what_is_read_is_what_was_written(report):
    assert ToleranceReport.load(report).camera == DRONE


def as_container(camera, bits):
    """The drone's sensor, its counts of so many bits in a container of 16: another part of full scale."""
    scale = (2**bits - 1) / 65535
    black = tuple(scale * level for level in camera.black_level)
    return replace(camera, black_level=black, white_level=scale * camera.white_level)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_the_same_sensor_gets_the_same_verdict_whatever_its_bits(report, tmp_path, bits):
    report = ToleranceReport.load(report)
    want = report.check(DRONE)
    got = report.check(as_container(DRONE, bits))
    np.testing.assert_allclose(got["value"], want["value"], rtol=1e-9)
    assert got["verdict"].tolist() == want["verdict"].tolist()
    # Outside alike too, and against the report of a sensor of other bits.
    own = replace(report, camera=as_container(DRONE, bits))
    for each in (report, own):
        for camera in (DARK, as_container(DARK, 12), as_container(DARK, 14)):
            assert each.check(camera)["verdict"].to_dict() == report.check(DARK)["verdict"].to_dict()
    assert report.check(DARK).loc["black_level", "verdict"] == "outside"


def test_levels_of_a_report_written_before_become_shares_of_the_range(report, tmp_path):
    content = json.loads(report.read_text())
    now = ToleranceReport.load(report)
    for row in content["settings"]:
        if row["name"].startswith("black_level"):
            for key in ("value", "low", "high", "safe_low", "safe_high"):
                row[key] *= now.camera.span
            row["unit"] = "of full scale"
    old = tmp_path / "old.json"
    old.write_text(json.dumps({**content, "version": 1}))
    pd.testing.assert_frame_equal(ToleranceReport.load(old).table, now.table)
