"""Weights trained on ImageNet: found in a cache or fetched, with a plain word where neither works."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from torch import nn

# What fetching and reading can end in.
_FAILURES = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError),
    *(pickle.UnpicklingError, SafetensorError),
)
# How long a server may take to answer.
_PATIENCE_S = 10.0


class PretrainedWeightsError(OSError):
    """Pretrained weights are neither in the cache nor to be had; says where they belong."""


def load_imagenet_weights(network: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights into a ResNet, in place, all but its last layer ``fc``.

    Args:
        network: a ResNet of torchvision with any number of classes.
        name: its name, such as "ResNet18".

    Raises:
        PretrainedWeightsError: they are not in torch's cache and can't be fetched, or are damaged.
    """
    url = torchvision.models.get_model_weights(name.lower()).IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    remedy = f"fetch {url} on a machine that can, put it into {folder}, or leave pretrained off"
    if not path.exists():
        _knock(url, f"no pretrained weights for {name}: {path} does not exist", remedy)
    try:
        weights = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
        left = network.load_state_dict(
            {key: value for key, value in weights.items() if not key.startswith("fc.")},
            strict=False,
        )
    except _FAILURES as error:
        raise PretrainedWeightsError(
            f"pretrained weights for {name} can't be read from {path} ({error!r}); remove the file if it is "
            f"there, {remedy}"
        ) from error
    if set(left.missing_keys) != {"fc.weight", "fc.bias"} or left.unexpected_keys:
        raise PretrainedWeightsError(f"{path} holds no weights of {name}; remove it, {remedy}")


def load_encoder_weights(encoder: nn.Module, name: str) -> None:
    """Load ImageNet weights into an encoder of segmentation-models-pytorch, in place.

    Args:
        encoder: the encoder, for 3 channels.
        name: its name, such as "resnet34".

    Raises:
        PretrainedWeightsError: there are none, they are not in Hugging Face's cache and can't be fetched.
    """
    from safetensors.torch import load_file
    from segmentation_models_pytorch.encoders import encoders, hf_hub_download

    settings = encoders[name].get("pretrained_settings", {}).get("imagenet")
    if settings is None:
        raise PretrainedWeightsError(
            f"encoder {name} has no ImageNet weights; take another or leave pretrained off"
        )
    repository, revision = settings["repo_id"], settings["revision"]
    what = {"repo_id": repository, "filename": "model.safetensors", "revision": revision}
    remedy = (
        f"fetch it on a machine that can by 'hf download {repository} --revision {revision}' and copy "
        "Hugging Face's cache here (the folder in HF_HOME), or leave pretrained off"
    )
    try:
        try:
            path = hf_hub_download(**what, local_files_only=True)
        except FileNotFoundError:
            address = f"https://huggingface.co/{repository}"
            lacking = f"no pretrained weights for encoder {name}: {repository} is not cached"
            _knock(address, lacking, remedy)
            path = hf_hub_download(**what)
        encoder.load_state_dict(load_file(path))
    except PretrainedWeightsError:
        raise
    except _FAILURES as error:
        raise PretrainedWeightsError(
            f"pretrained weights for encoder {name} can't be had from {repository} ({error}); {remedy}"
        ) from error


def _knock(url: str, what: str, remedy: str) -> None:
    """See that a server answers before it is asked for much: the libraries wait long, or retry."""
    import requests

    try:
        requests.head(url, timeout=_PATIENCE_S, allow_redirects=True).raise_for_status()
    except requests.RequestException as error:
        reason = type(error).__name__
        raise PretrainedWeightsError(
            f"{what}, and {url} can't be reached ({reason}). To go on: {remedy}"
        ) from error
