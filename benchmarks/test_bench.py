"""The benchmark: fair turns, equal work, and a README that keeps the rest of its text."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import benchmarks.contenders
import benchmarks.workload
from benchmarks import report, run
from benchmarks.__main__ import app
from benchmarks.contenders import CODES, contenders
from benchmarks.epochs import READY, EpochWorkload, epoch_contenders
from benchmarks.libraries import kornia_call, libraw_call, opencv_call, recipe_call
from benchmarks.published import PublishedParametrizedISP
from benchmarks.timing import Contender, SkippedError, interleave, summarise, wall_clock
from benchmarks.workload import Workload
from r2l.camera import CFA, DRONE
from r2l.isp import ParametrizedISP, StaticISP
from r2l.isp.demosaic import bilinear

BEGIN, END = report.BEGIN, report.END


@pytest.fixture
def work():
    made = Workload("small", 1, 64, 96)
    yield made
    made.close()


def bench(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


# --- the measurement ------------------------------------------------------------------------------


def scripted(name, log, seconds, **options):
    """A contender whose clock does not tick but says ``seconds``, and logs its turns."""

    def clock(call, times):
        log.append((name, times))
        return seconds * times

    return Contender("group", name, 2.0, lambda: lambda: None, clock=clock, **options)


def test_contenders_take_turns_and_each_round_another_begins():
    log = []
    group = [scripted(name, log, 1.0) for name in "abc"]
    times = interleave(group, {c.name: c.setup() for c in group}, rounds=4)
    turns = "".join(name for name, _ in log)
    assert turns == "abc" + "abc" + "bca" + "cab" + "abc"  # The first are trials.
    assert times == {name: [1.0] * 4 for name in "abc"}


def test_the_quick_run_several_times_in_a_turn():
    log, ticks = [], []
    group = [scripted("slow", log, 0.3), scripted("quick", log, 0.01)]
    calls = {c.name: c.setup() for c in group}
    times = interleave(group, calls, rounds=1, least_seconds=0.1, tick=ticks.append)
    assert log == [("slow", 1)] * 2 + [("quick", 1)] * 2 + [("slow", 1), ("quick", 10)]
    assert times == {"slow": [0.3], "quick": [pytest.approx(0.01)]}
    assert ticks == ["slow", "quick"] * 2


def test_a_turn_of_several_calls_begins_with_one_that_does_not_count():
    done = []
    group = [Contender("g", "a", 1.0, lambda: lambda: done.append(1), clock=lambda call, n: n * 0.05)]
    interleave(group, {"a": group[0].setup()}, rounds=3)
    assert len(done) == 3  # The clock here calls nothing.


def test_wall_clock_calls_as_often_as_asked():
    done = []
    assert wall_clock(lambda: done.append(1), 5) > 0
    assert len(done) == 5


def test_ratios_are_taken_within_rounds():
    one = Contender("g", "one", 2.0, lambda: None, {"x two": "two", "x none": "absent"})
    two = Contender("g", "two", 4.0, lambda: None)
    left_out = Contender("g", "left out", 1.0, lambda: None)
    # The machine was ten times slower in the last round, for both.
    times = {("g", "one"): [1.0, 2.0, 10.0], ("g", "two"): [1.0, 2.0, 20.0]}
    table = summarise([one, two, left_out], times).set_index("contender")
    assert list(table.index) == ["one", "two"]
    assert table.loc["one", "speed"] == 1.0
    assert (table.loc["one", "low"], table.loc["one", "high"]) == (0.6, 1.5)
    assert table.loc["one", "x two"] == 0.5
    assert np.isnan(table.loc["two", "x two"])
    assert "x none" not in table


def test_nothing_measured_is_an_empty_table():
    assert summarise([], {}).empty


# --- equal work -----------------------------------------------------------------------------------


def as_image(array):
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("code", CODES)
def test_the_recipe_does_the_work_of_the_static_pipeline(work, code):
    want = StaticISP.from_code(code, work.camera, variant="paper")(work.raw.double())
    got = as_image(recipe_call(work, [code])()[0])
    assert ((got - want).abs().amax(1) > 1e-3).double().mean() < 1e-3
    corrected = StaticISP.from_code(code, work.camera)(work.raw.double())
    assert (got - corrected).abs().mean() < 0.05
    assert 0.1 < want.mean() < 0.9


@pytest.mark.parametrize("cfa", CFA, ids=lambda c: c.name)
def test_the_published_parametrized_pipeline_agrees_inside(work, cfa):
    # Levels such that to divide by white - black changes nothing.
    camera = replace(DRONE, cfa=cfa, black_level=(0.0625,) * 4, white_level=1.0625)
    ours, published = ParametrizedISP(camera), PublishedParametrizedISP(camera)
    numbers = {name: value.detach().requires_grad_() for name, value in ours.numbers().items()}
    got, want = published(work.raw), ours.develop(work.raw, numbers)
    inside = (..., slice(4, -4), slice(4, -4))
    # Below the floor of 1e-5 the two differ on purpose.
    torch.testing.assert_close(got[inside], want[inside].clamp(min=1e-5 ** (1 / 2.2)), rtol=0, atol=2e-4)
    assert want.std() > 0.05
    # Gradients: those of the colours, away from the border and from what is clipped.
    for image in (got, want):
        image[inside].mean().backward()
    for name in ("white_balance", "colour_matrix", "gamma"):
        theirs, own = published.get_parameter(name).grad, numbers[name].grad
        torch.testing.assert_close(theirs, own, rtol=0.03, atol=0.003)


@pytest.mark.parametrize("cfa", CFA, ids=lambda c: c.name)
def test_kornia_and_opencv_demosaic_the_same_layout(work, cfa):
    work.camera = replace(DRONE, cfa=cfa)
    want = bilinear(work.raw, cfa)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(kornia_call(work)()[inside], want[inside], rtol=0, atol=1e-5)
    opencv = as_image(opencv_call(work)()[0].astype(np.float32) / 65535)
    torch.testing.assert_close(opencv[inside], want[inside], rtol=0, atol=2 / 65535)


@pytest.mark.parametrize("opening", [False, True])
def test_libraw_develops_the_same_frame(work, opening):
    call = libraw_call(work, "LINEAR", opening)
    picture = call()
    assert picture.shape == (64, 96, 3)
    np.testing.assert_array_equal(call(), picture)
    ours = StaticISP.from_code("bi,s,ga", work.camera)(work.raw)[0].permute(1, 2, 0).numpy()
    both = np.stack([picture.mean(-1).ravel() / 255, ours.mean(-1).ravel()])
    assert np.corrcoef(both)[0, 1] > 0.8
    folder = work.dng.parent
    work.close()
    assert not folder.exists()


def test_names_are_unique_and_peers_exist():
    for lengthy in (False, True):
        group = contenders(Workload("w", 1, 64, 64, lengthy=lengthy))
        names = [c.name for c in group]
        assert len(set(names)) == len(names)
        # What a long frame leaves out leaves a column empty.
        missing = {peer for c in group for peer in c.against.values()} - set(names)
        allowed = {"published parametrized, forward + backward"} if lengthy else set()
        assert missing == allowed


def test_the_rows_of_a_gpu_run_without_one(monkeypatch):
    # "cpu:0" is not "cpu": its rows are a GPU's. What only a GPU has is left out of them.
    monkeypatch.setattr(benchmarks.workload, "cuda_clock", wall_clock)
    monkeypatch.setattr(benchmarks.contenders, "graph_call", lambda call: call)
    monkeypatch.setattr(benchmarks.contenders, "compiled", lambda isp: isp)
    monkeypatch.setitem(run._LEAST_SECONDS, False, 0.001)  # how long each works doesn't matter here
    made = Workload("GPU, small", 2, 32, 32, device="cpu:0")
    found = run.run(rounds=1, quick=False, workloads=[made], only="GPU, small").speeds
    for way in ("r2l", "r2l compiled", "r2l CUDA graph"):
        for what in (*CODES, "parametrized, forward", "parametrized, forward + backward"):
            assert (found["contender"] == f"{way} {what}").sum() == 1
    for way in ("r2l kernels", "r2l CUDA graph kernels"):
        assert all((found["contender"] == f"{way} {code}").sum() == 1 for code in CODES)
    assert found["contender"].str.startswith("kornia").any()
    assert found["x float32"].notna().sum() == 4
    assert found["share of copy"].notna().sum() >= 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_run_without_a_gpu_says_so():
    assert "no CUDA device" in run.run(quick=True, rounds=1, only="0.05 MP / r2l bi,s,ga").text()


@pytest.mark.slow
def test_an_epoch_in_bfloat16_runs_too():
    work = EpochWorkload(4, 32, 2, device="cpu:0", network="SmallResNet", precision="bf16-mixed")
    first, *others = group = list(epoch_contenders(work))
    assert first.name == READY
    assert all("x images ready" in c.against for c in others)
    assert all(c.clock(c.setup(), 1) > 0 for c in group)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_run_writes_every_group(tmp_path):
    target, page = tmp_path / "bench.json", tmp_path / "bench.md"
    result = bench("--quick", "--json", target, "--markdown", page, "--threads", torch.get_num_threads())
    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text())
    cpu = [row for row in found["speeds"] if row["unit"] == "MP/s"]
    groups = {}
    for row in cpu:
        groups.setdefault(row["group"], {})[row["contender"]] = row
    assert len(groups) == 3
    for name, rows in groups.items():
        assert {f"r2l {code}" for code in CODES} | {"copying alone"} <= set(rows)
        assert all(row["speed"] > 0 and len(row["seconds"]) >= 1 for row in rows.values())
        assert rows["r2l bi,s,ga"].keys() >= {"x recipe", "share of copy"}
        assert ("LibRaw AHD" in rows) == name.startswith("frame")
        assert f"**{name}**" in page.read_text()
    frame = groups["frame of 0.05 MP"]
    assert frame["r2l me,s,ga"].keys() >= {"x recipe", "x LibRaw"}
    assert "x published" in frame["r2l parametrized, forward + backward"]
    assert "x me,u,me" in frame["r2l develop_all, twelve views"]
    (memory_row,) = found["memory"]
    assert 1 <= memory_row["x float32 picture"] < 8
    assert {"date", "processor", "cores", "torch"} <= found["environment"].keys()
    assert result.stdout.count("r2l develop_all") == 2


def test_only_measures_what_matches():
    result = bench("--quick", "--rounds", 1, "--only", "0.05 MP / .*bi,s,ga")
    assert result.exit_code == 0
    assert all(text in result.output for text in ("r2l bi,s,ga", "recipe bi,s,ga"))
    assert not any(text in result.output for text in ("batch", "LibRaw LINEAR"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no such thing"], "fits no contender"),
        (["--only", "("], "no regular expression"),
        (["--readme", "absent.md"], "absent.md"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = bench("--quick", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_missing_peers_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    result = bench("--quick")
    assert result.exit_code == 2
    assert "pip install -e '.[bench]'" in result.output


def test_without_a_compiler_compiled_contenders_are_left_out(monkeypatch, work):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = run.run(only="small / r2l compiled", rounds=1, workloads=[work])
    assert found.speeds.empty
    assert "left out, since torch.compile needs a C++ compiler" in found.text()


def test_a_compiler_that_fails_leaves_out_too(monkeypatch, work):
    def broken(isp, **options):
        def call(raw):
            raise RuntimeError("no header\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setenv("CXX", "sh")
    line = next(c for c in contenders(work) if c.name == "r2l compiled bi,s,ga")
    with pytest.raises(SkippedError, match=r"fails \(no header\)"):
        line.setup()


KNOWN_ALLOCATION = """
import numpy as np
from benchmarks import memory

def thrice(name, work):
    return lambda: [np.ones((3, *work.shape), np.float32) for _ in range(3)]

memory._call = thrice
print(memory.measure_here("any", 2048, 2048))
"""


@pytest.mark.slow
def test_memory_of_a_known_allocation():
    # In a process of its own, as `peaks` measures: here, memory that others freed would be taken.
    done = subprocess.run(
        [sys.executable, "-c", KNOWN_ALLOCATION], capture_output=True, text=True, check=True
    )
    picture = 2048 * 2048 * 3 * 4
    assert int(done.stdout) == pytest.approx(3 * picture, rel=0.1)


# --- the README -----------------------------------------------------------------------------------


def test_only_what_is_between_the_markers_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_bytes(f"# Märe\r\n{BEGIN}\nold | table\n{END}\r\ntail\n".encode())
    readme.chmod(0o640)
    report.write_between_markers(readme, "new\n\ntable\n")
    assert readme.read_bytes() == f"# Märe\r\n{BEGIN}\nnew\n\ntable\n{END}\r\ntail\n".encode()
    assert readme.stat().st_mode & 0o777 == 0o640
    report.write_between_markers(readme, "new\n\ntable\n")
    assert readme.read_bytes() == f"# Märe\r\n{BEGIN}\nnew\n\ntable\n{END}\r\ntail\n".encode()


@pytest.mark.parametrize(
    "content", ["nothing", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", f"{BEGIN}{END}{END}"]
)
def test_markers_are_checked_before_the_long_work(tmp_path, content):
    readme = tmp_path / "README.md"
    readme.write_text(content)
    result = bench("--readme", readme)
    assert result.exit_code == 2
    assert str(readme) in result.output.replace("\n", "")
    assert readme.read_text() == content


def test_a_disk_that_fills_up_leaves_the_readme_whole(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    content = f"a\n{BEGIN}\nold\n{END}\nb\n"
    readme.write_text(content)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.write_between_markers(readme, "new")
    assert readme.read_text() == content
    assert os.listdir(tmp_path) == ["README.md"]


def test_the_readme_of_the_project_has_the_markers():
    from tests.test_project import ROOT

    report.check_markers(ROOT / "README.md")
