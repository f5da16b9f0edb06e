"""What names a pipeline, and what the name stands for: one grammar, wherever a pipeline is asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import choose, load_named
from r2l.isp import functional as stage
from r2l.isp.pipeline import Pipeline, Stage, develop_together, is_full, run
from r2l.isp.saving import DESCRIPTION, load_isp
from r2l.isp.static import ENGINES, MOSAIC, PIPELINES, EngineISP, StaticISP, Variant, parse_code

#: What names a pipeline: a text of the grammar, a saved ISP's folder, a module or function, raw to display.
PipelineLike = str | Path | nn.Module | Callable[[Tensor], Tensor]
#: Several: texts and folders, or a mapping of names to any of them.
Pipelines = Sequence[str | Path] | Mapping[str, PipelineLike]
#: An address in a store of runs to the folder where it is.
_Fetch = Callable[[str], str | Path]

_ADDRESSES = ("runs:/", "models:/")


def linear_stages(names: Iterable[str]) -> list[str]:
    """Return which of a pipeline's stages are not meant for a display yet: those before its curve.

    >>> linear_stages(["raw", "demosaic", "gamma", "jpeg"])
    ['raw', 'demosaic']
    """
    *before, _ = names
    return list(takewhile(lambda name: name not in ("gamma", "tone_curve"), before))


class _Function(nn.Module):
    """A function, or a module of one's own, its ends watched."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        return {"raw": raw, "display": self(raw)}

    def forward(self, raw: Tensor) -> Tensor:
        stage.check_mosaic(raw)
        image = self.function(raw)
        stage.check_image(image)
        return image


class _Name(NamedTuple):
    """A text of the grammar: base, its variant if it names one, stages after it and before, or ''."""

    base: str
    variant: str
    steps: str
    before: str = ""


def _first(text: str, *signs: str) -> str:
    for sign in signs:
        text = text.partition(sign)[0]
    return text.strip()


def _parsed(text: str) -> _Name:
    """Take a text apart and see that its parts exist, else raise a ValueError; nothing is opened."""
    # A folder's name may hold any of the signs.
    rest, before = text.strip(), []
    while _first(rest, "+", ":") in MOSAIC and "+" in rest and not _is_saved(rest):
        head, _, rest = rest.partition("+")
        before.append(head.strip())
    base, plus, steps = (rest, "", "") if _is_saved(rest) else rest.partition("+")
    if before or plus:
        from r2l.isp.added_stages import display_stage, mosaic_stage  # what few need

        for step in before:
            mosaic_stage(step, None)
        for step in steps.split("+") if plus else ():
            display_stage(step)
    if rest in MOSAIC or (before and not rest):
        raise ValueError(f"{text!r} only prepares a mosaic: behind it goes a pipeline, as +ma,s,ga")
    base, variant, program = base.strip(), "", _first(base, ":")
    if _is_saved(base) or base.startswith(_ADDRESSES):
        pass
    elif "," in base:
        base, at, variant = (part.strip() for part in base.partition("@"))
        if at:
            choose(f"variant in pipeline {text!r}:", variant, Variant.__args__)
        parse_code(base)
    elif program in ENGINES:
        choose(f"method of {program}", base.partition(":")[2], ENGINES[program])
    elif ":" not in base:
        raise ValueError(
            f"{text!r} is no pipeline; give a code (the published ones: {' '.join(PIPELINES)}), also with "
            "@paper, @corrected or @camera; an engine "
            f"({' '.join(f'{e}:{m}' for e, methods in ENGINES.items() for m in methods)}); "
            "the folder that save_isp wrote an ISP to or its address runs:/...; module:function of your own, "
            "in Python also a module or function, from raw (B, 1, H, W) to display (B, 3, H, W); and behind "
            f"any of them display stages, such as +jpeg:75, before it mosaic stages ({', '.join(MOSAIC)}), "
            "such as defects:0.1+ma,s,ga"
        )
    return _Name(base, variant, steps, "+".join(before))


def check_pipeline(text: str) -> str:
    """Return a text of the grammar; a ValueError lists what there is. Nothing is opened, no own code run."""
    _parsed(text)
    return text


def _is_saved(text: str) -> bool:
    return bool(text) and (Path(text) / DESCRIPTION).is_file()


def _open_base(name: _Name, camera: Camera, variant: Variant, fetch: _Fetch | None) -> nn.Module:
    base = name.base
    if _is_saved(base):
        return _open_saved(base, camera)
    if base.startswith(_ADDRESSES):
        # By its name, since what knows stores of runs lies on a higher floor.
        fetch = fetch or resolve_name("r2l.training.tracking:resolve")
        return _open_saved(fetch(base), camera)
    if "," in base:
        return StaticISP.from_code(base, camera, name.variant or variant)
    if _first(base, ":") in ENGINES:
        return EngineISP(camera, base)
    own = load_named(base, "pipeline")
    return _Function(own(camera) if isinstance(own, type) else own)


def _open_saved(folder: str | Path, camera: Camera | None) -> nn.Module:
    isp = load_isp(folder)
    if camera is not None and isp.camera.cfa is not camera.cfa:
        raise ValueError(
            f"{folder} is of a camera of the layout {isp.camera.cfa.name}; these frames are "
            f"{camera.cfa.name}, and its colours would be wrong"
        )
    return isp


def open_pipeline(
    spec: PipelineLike, camera: Camera, variant: Variant = "corrected", fetch: _Fetch | None = None
) -> nn.Module:
    """Return what ``spec`` names as a module from raw (B, 1, H, W) to display (B, 3, H, W).

    The same texts are understood wherever r2l asks for a pipeline: in Python, on the command line, in sweeps.

    ==========================  =====================================================================
    ``ma,s,ga``                 demosaicing bi, ma or me; sharpening s or u; denoising me, ga or fft:
                                `StaticISP`
    ``ma,s,ga@camera``          the same in a variant of its own: corrected, paper or camera
    ``libraw:ahd``              LibRaw's demosaicing (linear, ppg, ahd, dcb, dht, vng): `EngineISP`
    ``opencv:ea``               OpenCV's (bilinear, ea, vng)
    ``my_camera/``              the folder that `save_isp` wrote an ISP to; it has its own camera
    ``runs:/ID/processor``      a processor in the store of runs; also ``models:/name@alias``
    ``mine:look``               the function ``look`` (raw batch to display batch), or module, in
                                ``mine.py``, here or installed; a class is called with the camera
    ==========================  =====================================================================

    Behind any of them, display stages, in order, each behind a ``+``: ``ma,s,ga+resize:0.5+jpeg:75``.

    ========================  =======================================================================
    ``+jpeg:75``              written as JPEG of that quality (4:2:0) and read; gradients pass
                              straight through, as if it were not there
    ``+resize:0.5``           so many times as high and wide (bilinear, with antialiasing): the picture
                              is then smaller, as that of a camera that scales its output, and
                              `develop_views` enlarges it again where there are masks;
                              ``+resize:0.5+resize:2`` only takes the detail
    ``+tone:srgb``            sRGB's curve in the place of gamma 2.2; filmic: toe and shoulder;
                              contrast: steeper in the middle
    ``+quantise:8``           rounded to so many bits; gradients straight through
    ``+chroma_blur:1.5``      colour, not luma, blurred by a Gaussian of that sigma in pixels
    ``+vignette:0.5``         the corners lose so much of their light
    ========================  =======================================================================

    Before any of them, mosaic stages, in order: ``defects:0.1+lines+ma,s,ga+jpeg:75``.

    ========================  =======================================================================
    ``defects:0.1+``          hot and dead pixels, by that threshold: `r2l.isp.correct_defects`
    ``shading:0.5+``          the light that corners lost, given back: `r2l.isp.correct_shading`
    ``lines:15+``             offsets of rows and columns, beside so many lines: `r2l.isp.correct_lines`
    ========================  =======================================================================

    >>> import torch
    >>> from r2l.camera import DRONE
    >>> open_pipeline("ma,s,ga", DRONE)
    StaticISP(malvar2004, sharpening_filter, gaussian_denoising, corrected, Hasselblad L1D-20c (Raw-Drone))
    >>> open_pipeline("opencv:ea+tone:filmic+jpeg:80", DRONE)(torch.rand(1, 1, 4, 6)).shape
    torch.Size([1, 3, 4, 6])
    >>> grey = open_pipeline(lambda raw: raw.expand(-1, 3, -1, -1), DRONE)
    >>> grey(torch.rand(1, 1, 4, 6)).shape
    torch.Size([1, 3, 4, 6])

    Args:
        spec: a text; a path; a module, which is returned as it is; or any function of a raw batch.
        camera: whose frames they are.
        variant: of codes that don't name one; see `StaticISP`.
        fetch: address to folder, for those in a store; the usual store unless given.

    Raises:
        ValueError: none of these; a part that does not exist; a damaged folder; an address of nothing.
        R2LError: own code that is not to be found.
    """
    return open_pipelines({"": spec}, camera, variant, fetch)[""]


def open_pipelines(
    pipelines: Pipelines, camera: Camera, variant: Variant = "corrected", fetch: _Fetch | None = None
) -> dict[str, nn.Module]:
    """Return `open_pipeline` of each by name; those that differ in the stages around it share their base."""
    bases: dict[_Name, nn.Module] = {}

    def opened(spec: PipelineLike) -> nn.Module:
        if isinstance(spec, nn.Module):
            return spec
        if isinstance(spec, Path):
            return _open_saved(spec, camera)
        if callable(spec):
            return _Function(spec)
        name = _parsed(spec if isinstance(spec, str) else repr(spec))
        key = name._replace(steps="", before="")
        if key not in bases:
            bases[key] = _open_base(name, camera, variant, fetch)
        steps = "+".join(filter(None, (name.before, name.steps)))
        if not steps:
            return bases[key]
        from r2l.isp.added_stages import Displayed  # what few need is not imported with the rest

        return Displayed(camera, bases[key], steps)

    return {name: opened(spec) for name, spec in name_pipelines(pipelines).items()}


def name_pipelines(pipelines: Pipelines) -> dict[str, PipelineLike]:
    """Return pipelines by name: a mapping as it is, texts and folders by themselves, else a ValueError."""
    if isinstance(pipelines, Mapping):
        return dict(pipelines)
    if nameless := [type(spec).__name__ for spec in pipelines if not isinstance(spec, str | Path)]:
        raise ValueError(f"{nameless[0]} has no name; give modules and functions as {{name: pipeline}}")
    return {str(spec): spec for spec in pipelines}


def develop_all(
    raw: Tensor, camera: Camera, pipelines: Pipelines = PIPELINES, variant: Variant = "corrected"
) -> dict[str, Tensor]:
    """Develop ``raw`` (B, 1, H, W) by several pipelines: {name: (B, 3, H, W) in display domain}.

    The same as ``open_pipeline(spec, camera, variant)(raw)`` for each; what they share is done once: what
    static pipelines begin with alike, and what display stages are behind.

    >>> import torch
    >>> from r2l.camera import DRONE
    >>> views = develop_all(torch.rand(2, 1, 8, 8), DRONE, ["bi,s,ga", "bi,s,ga+resize:0.5"])
    >>> {code: tuple(view.shape) for code, view in views.items()}
    {'bi,s,ga': (2, 3, 8, 8), 'bi,s,ga+resize:0.5': (2, 3, 4, 4)}

    Raises:
        ValueError: as `open_pipeline`; a module or function without a name; wrong shape or dtype, odd height
            or width.
    """
    stage.check_mosaic(raw)
    isps = open_pipelines(pipelines, camera, variant)
    # In less than full precision each that has stages around it computes by itself, in full.
    whole = is_full(raw)
    parts = {
        name: (tuple(isp.before), isp.base, isp.after) if whole and hasattr(isp, "before") else ((), isp, ())
        for name, isp in isps.items()
    }
    views: dict[tuple[tuple[Stage, ...], nn.Module], Tensor] = {}
    for before in dict.fromkeys(before for before, *_ in parts.values()):
        bases = list(dict.fromkeys(base for first, base, _ in parts.values() if first == before))
        quick = [base for base in bases if isinstance(base, Pipeline) and base.quick]
        mosaic = run(before, raw)
        done = dict(zip(quick, develop_together(quick, mosaic), strict=True))
        views |= {(before, b): done[b] if b in done else b(mosaic) for b in bases}
    return {name: run(after, views[before, base]) for name, (before, base, after) in parts.items()}


class RandomPipeline(nn.Module):
    """Develops each image by a pipeline drawn at random, anew each time; for training on all of them.

    Draws come from torch's global generator, which `r2l.training.fit` seeds and restores. The pipelines are
    as in `r2l.isp.develop_all`, all of one size of images.
    """

    def __init__(self, camera: Camera, codes: Pipelines = PIPELINES) -> None:
        super().__init__()
        if not codes:
            raise ValueError("no pipelines to draw from")
        self.pipelines = nn.ModuleList(open_pipelines(codes, camera).values())

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) to display (B, 3, H, W)."""
        drawn = torch.randint(len(self.pipelines), (len(raw),))
        parts = {}
        for number in drawn.unique().tolist():
            rows = (drawn == number).nonzero()[:, 0].to(raw.device)
            parts.update(zip(rows.tolist(), self.pipelines[number](raw[rows]), strict=True))
        if len(sizes := {tuple(image.shape[-2:]) for image in parts.values()}) > 1:
            raise ValueError(f"pipelines whose images are of several sizes make no batch: {sizes}")
        return torch.stack([parts[row] for row in range(len(raw))])
