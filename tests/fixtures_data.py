"""Small copies of the published data sets, in their real formats: names, folders, TIFF, PNG, DNG."""

import zipfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from r2l.camera import DRONE
from r2l.rawfile import write_dng

# As published, in small: rare classes are dropped, and so is one bad file.
COUNTS = {"BAS": 3, "EOS": 4, "LYT": 9, "MON": 7, "NGS": 8, "PMO": 2, "MYB": 1}
KEPT = sum(count for name, count in COUNTS.items() if name not in ("PMO", "MYB"))
BAD = "Ma190c_lame3_zone13_composite_Mcropped_2"
LABELS = Path("microscopy/labels/Ma190c_annotations.dat")


def scale(intensity):
    return f"raw_scale{int(intensity * 100):03d}"


def mosaic(rng, shape, level):
    """Steps of 16 bit, with structure, so that no two frames are alike."""
    down, right = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]
    light = level * (0.3 + 0.4 * down * right + 0.3 * rng.random(shape))
    return np.round(light * 65535).astype(np.uint16)


def write_microscopy(root, *, size=32, intensities=(1.0,), views=(), seed=0):
    """Write Raw-Microscopy; return stem -> (class, mosaic at intensity 1.0)."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation([name for name, count in COUNTS.items() for _ in range(count)]).tolist()
    contents = {}
    for i, code in enumerate(codes):
        stem = f"Ma190c_lame{1 + i // 18}_zone{1 + i % 18 // 2}_composite_Mcropped_{1 + i % 2}"
        contents[stem] = code, mosaic(rng, (size, size), 1.0)
    contents[BAD] = "LYT", mosaic(rng, (size, size), 1.0)
    (root / LABELS).parent.mkdir(parents=True, exist_ok=True)
    (root / LABELS).write_text("".join(f"{stem} {code}\n" for stem, (code, _) in contents.items()))
    for intensity in intensities:
        folder = root / "microscopy/images" / scale(intensity)
        folder.mkdir(parents=True, exist_ok=True)
        for stem, (_, steps) in contents.items():
            tifffile.imwrite(folder / f"{stem}.tiff", (steps * intensity).astype(np.uint16))
    for view in views:
        folder = root / "microscopy/images/processed_views" / view
        folder.mkdir(parents=True)
        for stem, (_, steps) in contents.items():
            image = np.stack([steps, steps // 2, steps // 4], axis=-1)
            tifffile.imwrite(folder / f"{stem}.tiff", image, photometric="rgb")
    return contents


def write_drone_tiles(root, *, photos=6, per_photo=3, size=32, intensities=(1.0,), seed=0):
    """Write Raw-Drone as tiles; return stem -> (mosaic, mask)."""
    rng = np.random.default_rng(seed)
    contents = {}
    masks = root / "drone/masks_tiles_256"
    masks.mkdir(parents=True)
    for photo in range(photos):
        for tile in range(per_photo):
            stem, mask = f"{photo:02d}_{tile:05d}", np.zeros((size, size), bool)
            mask[2 + tile : 9 + tile, 3:12] = True
            contents[stem] = mosaic(rng, (size, size), 0.5), mask
            Image.fromarray(mask).save(masks / f"{stem}.png")
    for intensity in intensities:
        folder = root / f"drone/images_tiles_256/{scale(intensity)}"
        folder.mkdir(parents=True)
        for stem, (steps, _) in contents.items():
            Image.fromarray((steps * intensity).astype(np.uint16)).save(folder / f"{stem}.tif")
    return contents


def write_drone_photos(root, *, photos=5, shape=(600, 800), intensities=(1.0,), seed=0):
    """Write Raw-Drone as DNG photos of 2x3 tiles (and a rest); return stem -> (mosaic, mask).

    Tile 0 is all car, tile 1 has a speck of one, tile 2 a corner of more than 1 %, 3 to 5 none.
    """
    rng = np.random.default_rng(seed)
    contents = {}
    for number in range(photos):
        stem, mask = f"DJI_{440 + number:04d}", np.zeros(shape, np.uint8)
        mask[:256, :256] = 255
        mask[10:12, 300:302] = 255
        mask[200:256, 512:560] = 255
        contents[stem] = mosaic(rng, shape, 0.5) + np.uint16(4096), mask
    for intensity in intensities:
        folder = root / f"drone/images_full/{scale(intensity)}"
        folder.mkdir(parents=True)
        for stem, (steps, _) in contents.items():
            write_dng(folder / f"{stem}.DNG", (steps * intensity).astype(np.uint16) / 65535, DRONE)
    (root / "drone/masks_full").mkdir(parents=True)
    for stem, (_, mask) in contents.items():
        Image.fromarray(mask).save(root / f"drone/masks_full/{stem}_mask.png")
    return contents


def zip_folders(archive, top, *folders):
    """Zip folders of a copy, with names from ``top`` on, as the published archives have them."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for folder in folders for path in (top / folder).rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(top))
    return archive
