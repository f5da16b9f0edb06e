"""Adversarial search: processing under which a fixed task model fails while the image looks the same.

The forensic experiment of Oala et al., "Data Models for Dataset Drift Controls in Machine Learning With
Optical Images", TMLR 2023, section on drift forensics: the ISP's parameters are trained to *raise* the task
loss, with a penalty on the distance to the image that the untouched ISP makes.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from r2l.files import choose
from r2l.isp import ParametrizedISP

#: The published names of what can be searched, and those of `ParametrizedISP`.
PARAMETERS = {
    "black_level": "black_level",
    "white_balance": "white_balance",
    "colour_correction": "colour_matrix",
    "gamma_correct": "gamma",
    "sharpening_filter": "sharpening_kernel",
    "gaussian_blur": "blur_kernel",
    "additive_layer": "additive",
}
#: Distances that grow with the difference; PSNR shrinks, so it is none of them.
PENALTIES = ("l2", "ssim")


@dataclass(frozen=True)
class Adversary:
    """What to search, and how the search is held back.

    The search minimises ``aim + weight * distance``, both means over the images:

    - *aim* is the margin max(z_true - max of the other z, -confidence) of the logits z: objective f6 of
      Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017, section V.
      It does not go below -``confidence``, so that an image that is wrong already gains nothing more at
      the others' cost (minus the cross-entropy, which was published, has no bound), and its gradient does
      not vanish where the model is sure. Masks: the mean of it over the pixels. Regression: minus the
      squared error of an image, not below -``confidence``, in units of the target squared.
    - *distance* is `image_distance` between the image and that of a frozen copy of the initial ISP.

    What is searched are steps of a `ParametrizedISP`, none of which leaves its bounds; a narrower tolerance
    is kept by projection after each step.

    Args:
        weight: of the distance; 0 leaves the search free.
        distance: "l2" or "ssim".
        parameters: names of `PARAMETERS`, or "all" for all that the ISP has.
        confidence: how far beyond the decision an answer is pushed, in logits.
        tolerance: bounds as a fraction of the camera's values (`ParametrizedISP.tolerance_bounds`); None
            for all that still is a camera.

    Raises:
        ValueError: a name that does not exist, or a weight or confidence below 0.
    """

    weight: float
    distance: str = "l2"
    parameters: tuple[str, ...] = ("all",)
    confidence: float = 5.0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        names = (self.parameters,) if isinstance(self.parameters, str) else tuple(self.parameters)
        object.__setattr__(self, "parameters", names)
        unknown = [name for name in names if name not in PARAMETERS and name != "all"]
        if unknown or not names:
            raise ValueError(f"unknown parameters {unknown}; choose from all, {', '.join(PARAMETERS)}")
        choose("distance", self.distance, PENALTIES)
        if not (0 <= self.weight < float("inf") and 0 <= self.confidence < float("inf")):
            raise ValueError(
                f"weight {self.weight} and confidence {self.confidence} have to be 0 or more, and finite"
            )

    def searched(self, isp: ParametrizedISP) -> list[str]:
        """Return the names, as ``isp`` has them, of what is searched; a ValueError if it lacks the layer."""
        there = list(isp.numbers())
        if "all" in self.parameters:
            return there
        names = [PARAMETERS[name] for name in dict.fromkeys(self.parameters)]
        if "additive" in names and "additive" not in there:
            raise ValueError(
                "the ISP has no additive layer; ParametrizedISP(camera, additive_shape=(1, 3, H, W)) has"
            )
        return names

    def reference(self, isp: nn.Module) -> ParametrizedISP:
        """Return a copy of ``isp`` to measure from; have only the chosen parameters ask for gradients."""
        if not isinstance(isp, ParametrizedISP):
            raise ValueError(
                f"adversarial search needs a ParametrizedISP as processor, got {type(isp).__name__}"
            )
        reference = copy.deepcopy(isp)
        isp.search_(self.searched(isp))
        return reference

    def objective(self, task: str, outputs: Tensor, targets: Tensor, distance: Tensor) -> Tensor:
        """Return what the search minimises, a scalar; ``distance`` is the mean over the batch."""
        return self.aims(task, outputs, targets).mean() + self.weight * distance

    def aims(self, task: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the bounded margin of each image, (B,): positive where the model is right.

        Targets are labels (B,), numbers (B, n) or masks (B, 1, H, W), as the ``task`` is.
        """
        if task == "segmentation" and outputs.shape[1] == 1:
            margins = (2 * targets - 1) * outputs
            return margins.clamp_min(-self.confidence).flatten(1).mean(1)
        if task != "regression":
            labels = targets.long().reshape(-1, 1, *outputs.shape[2:])
            true = outputs.gather(1, labels)
            other = outputs.scatter(1, labels, float("-inf")).amax(1, keepdim=True)
            return (true - other).clamp_min(-self.confidence).flatten(1).mean(1)
        return -(outputs - targets).square().flatten(1).mean(1).clamp_max(self.confidence)

    @torch.no_grad()
    def project_(self, isp: ParametrizedISP) -> None:
        """Bring the chosen parameters back into the tolerance, in place; the others stay to the bit."""
        if self.tolerance is not None:
            bounds = isp.tolerance_bounds(self.tolerance)
            isp.project_({name: bounds[name] for name in self.searched(isp) if name in bounds})
