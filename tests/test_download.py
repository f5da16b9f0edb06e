"""Fetching the data: against a real server on this machine, and B2's own simulator."""

import hashlib
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
from b2sdk.v3 import B2Api, B2HttpApiConfig, InMemoryAccountInfo, RawSimulator

from r2l.datasets import RawDrone, RawMicroscopy
from r2l.datasets.fetch import transfer
from r2l.datasets.fetch.download import ArchiveError, fetch
from r2l.datasets.fetch.transfer import _B2_FOLDERS, DownloadError, RemoteFile, b2_bucket, files_of, sync_b2
from r2l.datasets.layout import MANIFEST, Manifest, place_of
from tests.conftest import end_apart, invoke, start_apart
from tests.fixtures_data import (
    KEPT,
    LABELS,
    write_drone_photos,
    write_drone_tiles,
    write_microscopy,
    zip_folders,
)
from tests.local_zenodo import local_zenodo

ARCHIVE = "Raw-Microscopy.zip"
B2_IMAGES, B2_LABELS = _B2_FOLDERS["microscopy"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The record's files: name to bytes. The names are made up; the real ones are not known."""
    top = tmp_path_factory.mktemp("published")
    write_microscopy(top, size=64, intensities=(1.0, 0.25), views=("bi,s,ga",))
    write_drone_tiles(top)
    folder = tmp_path_factory.mktemp("archives")
    micro, drone = top / "microscopy", top / "drone"
    return {
        ARCHIVE: zip_folders(folder / "a", micro, "images").read_bytes(),
        "Raw-Drone.zip": zip_folders(folder / "b", drone, "images_tiles_256", "masks_tiles_256").read_bytes(),
        LABELS.name: (top / LABELS).read_bytes(),
        "datasheet.txt": b"what the data are",
    }


@pytest.fixture
def server(published, monkeypatch):
    monkeypatch.setattr(transfer, "_BACKOFF", 0.01)
    with local_zenodo(dict(published)) as running:
        monkeypatch.setenv("R2L_ZENODO_API", running.api)
        yield running


def no_leftovers(root):
    """No part of a file under a name of its own, nor any temporary one outside of downloads."""
    return not [p for p in root.rglob("*part*") if "downloads" not in p.parts]


def r2l(*arguments, **options):
    """Start `r2l` as a program."""
    command = [sys.executable, "-m", "r2l", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_fetch_then_load(server, tmp_path):
    dataset = RawMicroscopy(tmp_path, "all", download=True)
    assert len(dataset) == KEPT
    assert len(RawMicroscopy(tmp_path, "all", intensity=0.25)) == KEPT
    assert len(RawMicroscopy(tmp_path, "all", view="bi,s,ga")) == KEPT
    assert dataset[0]["raw"].shape == (1, 64, 64)
    assert no_leftovers(tmp_path)
    # The other set's archive was not asked for.
    assert not server.requests_of("Raw-Drone.zip")
    assert (tmp_path / "downloads/datasheet.txt").exists()
    assert len(RawDrone(tmp_path, "all", download=True)) == 18


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    fetch("microscopy", tmp_path, progress=False)
    count = len(server.log)
    fetch("microscopy", tmp_path, progress=False)
    assert len(server.log) == count + 1  # the record
    RawMicroscopy(tmp_path, download=True)
    assert len(server.log) == count + 1
    # Not even after the archives were deleted.
    (tmp_path / "downloads" / ARCHIVE).unlink()
    fetch("microscopy", tmp_path, progress=False)
    assert len(server.requests_of(ARCHIVE)) == 1
    # But a file that is gone comes back.
    gone = next((tmp_path / "microscopy/images/raw_scale025").iterdir())
    content = gone.read_bytes()
    gone.unlink()
    fetch("microscopy", tmp_path, progress=False)
    assert gone.read_bytes() == content


def test_files_are_told_apart_by_name():
    names = [ARCHIVE, "raw_drone_a.zip", "README.md", "both-micro-and-drone.zip"]
    files = [RemoteFile(name, 1, "md5:0", "") for name in names]
    assert [f.key for f in files_of("microscopy", files)] == [names[0], *names[2:]]
    assert [f.key for f in files_of("drone", files)] == names[1:]


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_off_goes_on_where_it_was_or_starts_over(server, tmp_path, published, ranges):
    server.breaks, server.ranges = [1 << 17, 3], ranges
    fetch("microscopy", tmp_path, progress=False)
    if ranges:
        assert server.requests_of(ARCHIVE) == [None, *(f"bytes={(1 << 17) * n}-" for n in (1, 2, 3))]
    assert len(RawMicroscopy(tmp_path, "all")) == KEPT
    assert (tmp_path / "downloads" / ARCHIVE).read_bytes() == published[ARCHIVE]


def test_never_whole_gives_up_and_keeps_what_came(server, tmp_path):
    server.files[ARCHIVE] = os.urandom(100_000)
    server.breaks, server.ranges = [1 << 16, 1000], False
    with pytest.raises(DownloadError, match="what came so far is kept") as caught:
        fetch("microscopy", tmp_path, progress=False)
    assert len(str(caught.value).splitlines()) == 2
    assert (tmp_path / "downloads/Raw-Microscopy.zip.part").stat().st_size == 1 << 16
    assert not (tmp_path / "downloads" / ARCHIVE).exists()


def test_wrong_md5(server, tmp_path):
    server.wrong_md5 = {ARCHIVE}
    with pytest.raises(DownloadError, match="other content than its record") as caught:
        fetch("microscopy", tmp_path, progress=False)
    assert ARCHIVE in str(caught.value)
    assert not list((tmp_path / "downloads").glob("Raw-Microscopy*"))
    assert not (tmp_path / "microscopy/images").exists()


@pytest.mark.parametrize("part", ["of another version", "as long as the file", "longer"])
def test_a_part_that_does_not_fit_is_thrown_away(server, tmp_path, published, part):
    whole = published[ARCHIVE]
    left = {"of another version": b"of another" * 150, "as long as the file": whole, "longer": whole + b"x"}
    (tmp_path / "downloads").mkdir()
    (tmp_path / f"downloads/{ARCHIVE}.part").write_bytes(left[part])
    fetch("microscopy", tmp_path, progress=False)
    assert (tmp_path / "downloads" / ARCHIVE).read_bytes() == whole
    if part == "of another version":
        assert server.requests_of(ARCHIVE) == ["bytes=1500-", None]


@pytest.mark.slow
def test_busy_server_is_given_the_time_it_asks_for(server, tmp_path):
    server.busy = 2
    begin = time.monotonic()
    fetch("microscopy", tmp_path, progress=False)
    assert time.monotonic() - begin >= 2 * 0.95
    assert len(RawMicroscopy(tmp_path, "all")) == KEPT


def test_at_most_two_requests_at_once(server, tmp_path):
    for number in range(6):
        server.files[f"extra{number}.bin"] = os.urandom(60_000)
    server.delay = 0.01
    fetch("microscopy", tmp_path, progress=False)
    assert server.most_at_once == 2


@pytest.mark.parametrize(
    ("api", "files", "match"),
    [
        ("http://127.0.0.1:9/api", {}, "no connection"),
        ("{}/elsewhere", {}, "answers 404"),
        ("{}", {"..": b""}, r"a file is called '\.\.'"),
        ("{}", None, r"stays busy.\nTry again later"),
    ],
)
def test_servers_of_no_use(server, tmp_path, monkeypatch, api, files, match):
    monkeypatch.setenv("R2L_ZENODO_API", api.format(server.api))
    server.busy, server.retry_after, server.files = 1000 * (files is None), "0", files
    with pytest.raises(DownloadError, match=match):
        fetch("drone", tmp_path, progress=False)


@pytest.mark.slow
def test_a_killed_download_goes_on(server, tmp_path, published):
    whole = len(published[ARCHIVE])
    server.delay = 0.2
    program = r2l("data", "fetch", "microscopy", "--root", tmp_path)
    part = tmp_path / "downloads/Raw-Microscopy.zip.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline
        assert program.poll() is None, program.communicate()
        time.sleep(0.01)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    came = part.stat().st_size
    assert 0 < came < whole
    server.delay = 0
    # Its lock has gone with it.
    assert len(RawMicroscopy(tmp_path, "all", download=True)) == KEPT
    assert server.requests_of(ARCHIVE) == [None, f"bytes={came}-"]


def fetch_and_be_killed(root, prepare):
    """Fetch in a process that kills itself where the lines of code in ``prepare`` say so."""
    script = f"""
import hashlib, os, sys, r2l.datasets.fetch.download as d
{prepare}
d.fetch("microscopy", sys.argv[1], progress=False)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(root)], timeout=60)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_download_killed_while_it_is_checked_does_not_come_again(server, tmp_path):
    prepare = """
digest = hashlib.file_digest
def killing(file, algorithm):
    if "Raw-Microscopy.zip" in file.name: os.kill(os.getpid(), 9)
    return digest(file, algorithm)
hashlib.file_digest = killing
"""
    fetch_and_be_killed(tmp_path, prepare)
    fetch("microscopy", tmp_path, progress=False)
    assert server.requests_of(ARCHIVE) == [None]
    left = {path.name for path in (tmp_path / "downloads").iterdir()}
    assert left == {*server.files, ".lock"} - {"Raw-Drone.zip"}


@pytest.mark.slow
def test_a_killed_unpacking_goes_on(server, tmp_path):
    prepare = """
replace, count = os.replace, []
def killing(*paths):
    count.append(1)
    if "raw_scale" in str(paths[1]) and len(count) > 12: os.kill(os.getpid(), 9)
    replace(*paths)
os.replace = killing
"""
    fetch_and_be_killed(tmp_path, prepare)
    assert (tmp_path / "microscopy/images/raw_scale025").exists()
    assert Manifest.read(tmp_path).unfinished == ["microscopy"]
    # What is there counts as unfinished, so that it is fetched to the end.
    assert len(RawMicroscopy(tmp_path, "all", download=True)) == KEPT
    assert no_leftovers(tmp_path)
    assert server.requests_of(ARCHIVE) == [None]


def test_what_a_killed_process_left_of_its_record_goes(server, tmp_path):
    (tmp_path / f".{MANIFEST}.0123abcd.part").write_text("{")
    (tmp_path / ".mine.part").write_text("my notes")
    fetch("drone", tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, ".mine.part", "downloads", "drone"}


def test_two_processes_at_once(server, tmp_path):
    server.delay = 0.005
    both = [start_apart(partial(fetch, progress=False), "microscopy", tmp_path) for _ in "ab"]
    assert [end_apart(process) for process in both] == [0, 0]
    assert server.requests_of(ARCHIVE) == [None]
    assert len(RawMicroscopy(tmp_path, "all")) == KEPT


def test_subset_by_ranges(server, tmp_path, published):
    notes = fetch("microscopy", tmp_path, tiles=5, progress=False)
    assert notes == [f"5 images of Raw-Microscopy are in {tmp_path / 'microscopy'}."]
    dataset = RawMicroscopy(tmp_path, "all")
    assert len(dataset) == 5
    assert dataset[4]["raw"].shape == (1, 64, 64)
    assert all(asked for asked in server.requests_of(ARCHIVE))
    assert not (tmp_path / "downloads" / ARCHIVE).exists()
    # The same cells at another exposure; then more of them; then all.
    fetch("microscopy", tmp_path, tiles=5, intensity=0.25, progress=False)
    assert RawMicroscopy(tmp_path, "all", intensity=0.25).names.tolist() == dataset.names.tolist()
    fetch("microscopy", tmp_path, tiles=8, progress=False)
    assert len(RawMicroscopy(tmp_path, "all")) == 8
    fetch("microscopy", tmp_path, progress=False)
    assert len(RawMicroscopy(tmp_path, "all")) == KEPT


def own_labels(root, text):
    (root / LABELS).parent.mkdir(parents=True)
    (root / LABELS).write_text(text)
    return root / LABELS


@pytest.mark.parametrize("tiles", [None, 5])
def test_own_labels_are_never_replaced(server, tmp_path, tiles):
    labels = own_labels(tmp_path, "mine EOS\n")
    with pytest.raises(ArchiveError, match="Nothing was replaced"):
        fetch("microscopy", tmp_path, tiles=tiles, progress=False)
    assert labels.read_text() == "mine EOS\n"


def test_subset_of_drone_tiles_comes_with_masks(server, tmp_path):
    fetch("drone", tmp_path, tiles=4, progress=False)
    dataset = RawDrone(tmp_path, "all")
    assert len(dataset) == 4
    assert dataset[0]["mask"].sum() > 0


def test_subset_transfers_less(tmp_path, server, tmp_path_factory):
    top = tmp_path_factory.mktemp("large")
    write_microscopy(top, size=256)
    server.files[ARCHIVE] = zip_folders(top / ARCHIVE, top / "microscopy", "images").read_bytes()
    before = server.sent
    fetch("microscopy", tmp_path, tiles=3, progress=False)
    assert server.sent - before < len(server.files[ARCHIVE]) / 4


def make_zip(members, **options):
    """Return the bytes of a zip of (name or ZipInfo, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def special(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return info


OUTSIDE = ("../", "a/../../", "/tmp/", "C:\\", "..\\")
GOOD = ("raw_scale100/Ma190c_lame1_zone1_composite_Mcropped_1.tiff", b"fine")


@pytest.mark.parametrize(
    ("member", "match"),
    [
        *(((f"{path}r2l-escape.txt", b"x"), "outside of the folder") for path in OUTSIDE),
        ((special("link", stat.S_IFLNK), b"/etc/passwd"), "a link or a device"),
        ((special("pipe", stat.S_IFIFO), b""), "a link or a device"),
    ],
)
@pytest.mark.parametrize("tiles", [None, 1])
def test_dangerous_archives_are_refused_whole(server, tmp_path, member, match, tiles):
    server.files[ARCHIVE] = make_zip([GOOD, member])
    root = tmp_path / "root"
    with pytest.raises(ArchiveError, match=match) as caught:
        fetch("microscopy", root, tiles=tiles, progress=False)
    assert ARCHIVE in str(caught.value)
    assert "Nothing was unpacked" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert not (root / "microscopy/images").exists()
    assert not Path("/tmp/r2l-escape.txt").exists()


def resized(size):
    """A zip whose only member is of 20,000 bytes and says ``size``."""
    content = make_zip([(GOOD[0], bytes(20_000))], compression=zipfile.ZIP_DEFLATED)
    told = (20_000).to_bytes(4, "little")
    assert content.count(told) == 2
    return content.replace(told, size.to_bytes(4, "little"))


def shifted():
    """A zip whose list of members begins too far, so that what it lists lies before the beginning."""
    content = make_zip([GOOD])
    end = content.rindex(b"PK\5\6")
    offset = int.from_bytes(content[end + 16 : end + 20], "little") + 10
    return content[: end + 16] + offset.to_bytes(4, "little") + content[end + 20 :]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (resized(10), "damaged"),  # it writes no more than it said
        (resized(30_000), "should have 30000 bytes, and 20000 came"),
        (shifted(), "damaged"),
        (make_zip([GOOD], compression=zipfile.ZIP_BZIP2), "is compressed by bzip2"),
        (make_zip([GOOD], compression=zipfile.ZIP_LZMA), "is compressed by lzma"),
        (make_zip([GOOD]).replace(b"fine", b"find"), "CRC"),
        (b"no zip at all", "no zip file"),
        (make_zip([("a.bin", bytes(50_000))], compression=zipfile.ZIP_DEFLATED), "it would grow"),
    ],
    ids=["less", "more", "shifted", "bzip2", "lzma", "flipped", "none", "endless"],
)
def test_archives_that_can_not_be_unpacked(server, tmp_path, monkeypatch, content, match):
    monkeypatch.setattr("r2l.datasets.fetch.download._MAX_BYTES", 40_000)
    server.files[ARCHIVE] = content
    with pytest.raises(ArchiveError, match=match):
        fetch("microscopy", tmp_path, progress=False)
    assert not list((tmp_path / "microscopy").rglob("*.tiff"))
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("why", ["no ranges", "zips in a zip"])
def test_where_single_images_can_not_be_had_all_come(server, tmp_path, published, why):
    if why == "no ranges":
        server.ranges = False
    else:
        server.files[ARCHIVE] = make_zip([("all/base.zip", published[ARCHIVE])])
    assert "whole archives" in fetch("microscopy", tmp_path, tiles=2, progress=False)[0].lower()
    assert len(RawMicroscopy(tmp_path, "all")) == KEPT


def test_the_users_files_stay(server, tmp_path):
    mine = tmp_path / "microscopy/images/raw_scale100/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("my notes")
    fetch("microscopy", tmp_path, progress=False)
    changed = next(mine.parent.glob("*.tiff"))
    changed.write_bytes(b"my own picture")
    with pytest.raises(ArchiveError, match="move it away") as caught:
        fetch("microscopy", tmp_path, progress=False)
    assert str(caught.value).startswith(f"{changed}: ")
    assert changed.read_bytes() == b"my own picture"
    assert mine.read_text() == "my notes"
    archive = tmp_path / "downloads" / ARCHIVE
    archive.write_bytes(b"of my own")
    with pytest.raises(DownloadError, match="Nothing was replaced: move it away"):
        fetch("microscopy", tmp_path, progress=False)
    assert archive.read_bytes() == b"of my own"


CELL = "Ma190c_lame1_zone2_c_1.tiff"


@pytest.mark.parametrize(
    ("kind", "archive", "member", "place"),
    [
        ("microscopy", "x.zip", f"a/raw_scale005/{CELL}", "images/raw_scale005"),
        ("microscopy", "raw_scale010.zip", CELL, "images/raw_scale010"),
        ("microscopy", "x.zip", CELL, "images/raw_scale100"),
        ("microscopy", "x.zip", f"processed_views/ma_u_me/{CELL}", "images/processed_views/ma_u_me"),
        ("microscopy", "x.zip", f"rgb/{CELL}", "other/x/rgb"),
        ("microscopy", "", "Ma190c_annotations.dat", "labels"),
        ("drone", "images.zip", "raw_scale050/DJI_0001.DNG", "images_full/raw_scale050"),
        ("drone", "images.zip", "DJI_0001.DNG", "images_full/raw_scale100"),
        ("drone", "tiles.zip", "raw_scale050/00_00001.tif", "images_tiles_256/raw_scale050"),
        ("drone", "masks_tiles_256.zip", "00_00001.png", "masks_tiles_256"),
        ("drone", "masks.zip", "DJI_0001_mask.png", "masks_full"),
        ("drone", "views.zip", "bi,s,ga/00_00001.png", "processed_views/bi,s,ga"),
        ("drone", "x.zip", "readme.txt", "other/x"),
    ],
)
def test_places_of_files(kind, archive, member, place):
    assert str(place_of(kind, archive, member)) == f"{kind}/{place}/{Path(member).name}"


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    (disk / "mine.txt").write_text("my notes")
    yield disk
    mine = [path.read_text() for path in disk.glob("mine.txt")]
    subprocess.run(["umount", disk], check=True)
    assert mine == ["my notes"]


def test_too_small_a_disk_is_seen_before(server, small_disk):
    server.files[ARCHIVE] = os.urandom(600_000)
    with pytest.raises(DownloadError, match=r"GB are free.\nMake room or choose another --root"):
        fetch("microscopy", small_disk, progress=False)
    assert server.requests_of(ARCHIVE) == []


@pytest.mark.parametrize("while_unpacking", [False, True])
def test_disk_that_fills_up_on_the_way(server, small_disk, monkeypatch, while_unpacking):
    monkeypatch.setattr(transfer, "check_room", lambda *_: None)  # as if there was room
    images = [(GOOD[0].replace("_1.tiff", f"_{i}.tiff"), bytes(100_000)) for i in range(9)]
    archive = make_zip(images, compression=zipfile.ZIP_DEFLATED)
    server.files[ARCHIVE] = archive if while_unpacking else os.urandom(600_000)
    with pytest.raises(DownloadError, match=r"no room on the disk .*\n.*goes on from here") as caught:
        fetch("microscopy", small_disk, progress=False)
    assert (".tiff: " if while_unpacking else ARCHIVE) in str(caught.value)
    assert (small_disk / "downloads" / ARCHIVE).exists() == while_unpacking
    assert {p.stat().st_size for p in small_disk.rglob("*.tiff")} == ({100_000} if while_unpacking else set())
    assert no_leftovers(small_disk)


def test_full_disk_of_the_cache(small_disk, tmp_path, monkeypatch):
    contents = write_microscopy(tmp_path / "data", size=128)
    monkeypatch.setenv("R2L_CACHE", str(small_disk))
    dataset = RawMicroscopy(tmp_path / "data", "all")
    with pytest.warns(UserWarning, match="kept in memory.*No space left"):
        item = dataset[0]
    assert (item["raw"][0].numpy() * 65535).round().tolist() == contents[dataset.names[0]][1].tolist()
    assert {p.name for p in small_disk.iterdir() if p.suffix != ".lock"} == {"mine.txt"}


@pytest.mark.slow
def test_limit_on_file_sizes(server, tmp_path):
    server.files[ARCHIVE] = os.urandom(600_000)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # noqa: E731
    program = r2l("data", "fetch", "microscopy", "--root", tmp_path, preexec_fn=limit)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 2
    assert "no room on the disk" in errors
    assert "Traceback" not in errors


@pytest.fixture
def bucket(monkeypatch, published):
    """The authors' bucket, in b2sdk's simulator."""
    api = B2Api(InMemoryAccountInfo(), api_config=B2HttpApiConfig(_raw_api_class=RawSimulator))
    key_id, key = api.session.raw_api.create_account()
    monkeypatch.setenv("B2_APPLICATION_KEY_ID", key_id)
    monkeypatch.setenv("B2_APPLICATION_KEY", key)
    api.authorize_account(key_id, key)
    made = api.create_bucket("perturbed-minds", "allPrivate")
    made.upload_bytes(published[ARCHIVE], f"{B2_IMAGES}/raw.zip")
    made.upload_bytes(published[LABELS.name], f"{B2_LABELS}/{LABELS.name}")
    for folder in (B2_IMAGES, B2_LABELS):
        made.upload_bytes(b"", f"{folder}/.bzEmpty")
    monkeypatch.setattr("b2sdk.v3.B2Api", lambda _: api)
    return made


def test_fetch_from_b2(bucket, tmp_path, capsys):
    assert b2_bucket().name == "perturbed-minds"
    fetch("microscopy", tmp_path, source="b2")
    assert "fetch: 100%" in capsys.readouterr().err
    assert len(RawMicroscopy(tmp_path, "all")) == KEPT
    assert not list(tmp_path.rglob(".bzEmpty"))


def test_b2_never_deletes_or_replaces(bucket, tmp_path):
    labels = own_labels(tmp_path, "mine, and longer ago")
    os.utime(labels, (0, 0))
    (labels.parent / "notes.txt").write_text("mine")
    sync_b2("microscopy", tmp_path, bucket, progress=False)
    assert labels.read_text() == "mine, and longer ago"
    assert (labels.parent / "notes.txt").read_text() == "mine"
    archive = tmp_path / "downloads/b2/microscopy_images/raw.zip"
    before = archive.stat().st_mtime_ns
    sync_b2("microscopy", tmp_path, bucket, progress=False)
    assert archive.stat().st_mtime_ns == before


def test_b2_without_the_bucket_or_credentials(bucket, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match="refuses the bucket elsewhere"):
        b2_bucket("elsewhere")
    monkeypatch.setenv("B2_APPLICATION_KEY", "no-such-secret")
    with pytest.raises(DownloadError, match="B2: refuses the bucket") as caught:
        fetch("microscopy", tmp_path, source="b2", progress=False)
    assert "no-such-secret" not in str(caught.value)
    monkeypatch.delenv("B2_APPLICATION_KEY")
    with pytest.raises(DownloadError, match="B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY"):
        fetch("microscopy", tmp_path, source="b2", progress=False)


def test_b2_leaves_what_is_in_the_way(bucket, tmp_path):
    (tmp_path / "microscopy").write_text("a file in the way of a folder")
    with pytest.raises(OSError, match="microscopy"):
        sync_b2("microscopy", tmp_path, bucket, progress=False)
    assert (tmp_path / "microscopy").read_text() == "a file in the way of a folder"


def test_b2_onto_a_full_disk(bucket, small_disk, monkeypatch):
    bucket.upload_bytes(os.urandom(600_000), f"{B2_IMAGES}/large.zip")
    with pytest.raises(DownloadError, match="GB are free"):
        fetch("microscopy", small_disk, source="b2", progress=False)
    monkeypatch.setattr(transfer, "check_room", lambda *_: None)
    with pytest.raises(DownloadError, match="no room on the disk") as caught:
        fetch("microscopy", small_disk, source="b2", progress=False)
    assert len(str(caught.value).splitlines()) == 2
    assert "large.zip" in str(caught.value)
    assert not list((small_disk / "downloads/b2").rglob("*large*"))


def test_b2_file_that_would_leave_its_folder(bucket, tmp_path):
    bucket.upload_bytes(b"x", f"{B2_IMAGES}/a/../../escape.txt")
    with pytest.raises(DownloadError, match="outside of"):
        sync_b2("microscopy", tmp_path, bucket, progress=False)


def test_b2_file_that_arrives_damaged(bucket, tmp_path):
    """The simulator sends other bytes than its SHA-1 says."""
    made = bucket.upload_bytes(b"content" * 100, f"{B2_IMAGES}/other.zip")
    stored = bucket.api.session.raw_api.file_id_to_bucket_id
    simulated = bucket.api.session.raw_api.bucket_id_to_bucket[stored[made.id_]]
    simulated.file_id_to_file[made.id_].content_sha1 = hashlib.sha1(b"others").hexdigest()
    with pytest.raises(DownloadError, match=r"other\.zip: B2 didn't give it"):
        sync_b2("microscopy", tmp_path, bucket, progress=False)
    assert not list((tmp_path / "downloads/b2").rglob("*other*"))


data = partial(invoke, "data")


def test_command_fetch(server, tmp_path):
    result = data("fetch", "drone", "--root", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"Raw-Drone is in {tmp_path / 'drone'}." in result.stdout
    assert "fetch: 100%" in result.stderr
    result = data("fetch", "microscopy", "--root", tmp_path, "--tiles", 3)
    assert "3 images" in result.stdout
    for arguments in ("--tiles 0", "--tiles 3 --source b2", "--tiles 1 --intensity 0.3"):
        result = data("fetch", "drone", "--root", tmp_path, *arguments.split())
        assert result.exit_code == 2
        assert 1 <= len(result.stderr.splitlines()) <= 2


def test_command_info(server, tmp_path):
    empty = data("info", "--root", tmp_path)
    for fact in ("940", "548", "CC-BY-4.0", "10.5281/zenodo.5235536", "NGB 8", "nothing in"):
        assert fact in empty.stdout
    assert server.log == []
    fetch("microscopy", tmp_path, tiles=5, progress=False)
    told = data("info", "microscopy", "--root", tmp_path)
    folder = tmp_path / "microscopy/images/raw_scale100"
    assert f"5 in {folder} (a part was asked for)" in told.stdout
    assert "Raw-Drone" not in told.stdout


def test_command_verify(server, tmp_path):
    nothing = data("verify", "microscopy", "--root", tmp_path)
    assert nothing.exit_code == 2
    assert "r2l data fetch microscopy" in nothing.stderr
    fetch("microscopy", tmp_path, tiles=5, progress=False)
    part = data("verify", "microscopy", "--root", tmp_path)
    assert part.exit_code == 0, part.output
    assert "5 images, each decodes" in part.stdout
    fetch("microscopy", tmp_path, progress=False)
    whole = data("verify", "microscopy", "--root", tmp_path)
    # Everything is as fetched, and this small copy lacks most of the published cells.
    assert "files have their checksums" in whole.stdout
    assert f"{KEPT} images, and 940 were published" in whole.stdout
    assert "9 images of LYT, and 230 were published" in whole.stdout
    assert whole.exit_code == 2
    names = RawMicroscopy(tmp_path, "all").names
    spoilt, gone = (tmp_path / f"microscopy/images/raw_scale100/{n}.tiff" for n in names[:2])
    spoilt.write_bytes(spoilt.read_bytes()[:200])
    gone.unlink()
    told = data("verify", "microscopy", "--root", tmp_path).stdout
    assert f"{spoilt}: not as it was fetched" in told
    assert f"{gone}: gone since it was fetched" in told


def test_verify_copies_of_unknown_origin(tmp_path):
    write_drone_photos(tmp_path, photos=2)
    result = data("verify", "drone", "--root", tmp_path)
    assert "there are no checksums" in result.stdout
    assert "2 images, and 12 were published" in result.stdout
    path = tmp_path / "drone/images_full/raw_scale100/DJI_0441.DNG"
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path}: " in data("verify", "drone", "--root", tmp_path).stdout


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        '{"files": {"a": [1e999, 0]}}',
        '{"files": {}, "unfinished": null}',
        '{"files": {}, "unfinished": [null, "drone"]}',
        '{"files": {}, "subsets": {"drone/raw_scale100": "DJI_0440"}}',
        '{"files": {}, "archives": {"a.zip": 3}}',
    ],
)
def test_damaged_manifest(tmp_path, text):
    write_microscopy(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="damaged"):
        RawMicroscopy(tmp_path)
