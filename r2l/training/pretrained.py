"""Weights trained on ImageNet: found in a cache or fetched, with a plain word where neither works."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from r2l.files import R2LError

# What fetching and reading can end in.
_FAILURES = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError),
    *(pickle.UnpicklingError, SafetensorError),
)
# How long a server may take to answer.
_PATIENCE_S = 10.0


class PretrainedWeightsError(R2LError, OSError):
    """Pretrained weights are neither in the cache nor to be had; says where they belong."""


def load_imagenet_weights(network: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights into a network of it, in place, all but its last layer.

    Raises:
        PretrainedWeightsError: they are not in torch's cache and can't be fetched, or are damaged.
    """
    import torchvision

    kinds = torchvision.models.get_model_weights(name.lower())
    weights = getattr(kinds, "IMAGENET1K_V1", kinds.DEFAULT)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rsplit("/", 1)[-1]
    remedy = (
        f"fetch {weights.url} on a machine that can, put it into {folder}, or leave pretrained off"
    )
    if not path.exists():
        why = f"{path} does not exist, and {weights.url} can't be reached"
        with _explained(name, why, f"To go on, {remedy}"):
            _knock(weights.url)
    with _explained(name, f"{path} holds no weights of {name}", f"Remove the file, {remedy}"):
        fresh = network.state_dict()
        last = list(fresh)[-1].rpartition(".")[0]
        own = {key: value for key, value in fresh.items() if key.startswith(f"{last}.")}
        options = {"map_location": "cpu", "progress": False, "check_hash": True}
        network.load_state_dict({**weights.get_state_dict(**options, weights_only=True), **own})


def load_encoder_weights(encoder: nn.Module, name: str) -> None:
    """Load ImageNet weights into an encoder of segmentation-models-pytorch, in place.

    Its own ``encoder_weights`` asks the server, with many retries, also for what is cached.

    Raises:
        PretrainedWeightsError: there are none, they are not in Hugging Face's cache and can't be fetched.
    """
    from safetensors.torch import load_file
    from segmentation_models_pytorch.encoders import encoders, hf_hub_download

    settings = encoders[name].get("pretrained_settings", {}).get("imagenet")
    if settings is None:
        raise PretrainedWeightsError(
            f"encoder {name}", "it has no ImageNet weights", "Take another or leave pretrained off"
        )
    file = {"repo_id": settings["repo_id"], "revision": settings["revision"]}
    file["filename"] = "model.safetensors"
    remedy = (
        f"Fetch it on a machine that can by 'hf download {file['repo_id']} --revision "
        f"{file['revision']}' and copy Hugging Face's cache here (the folder in HF_HOME), or leave "
        "pretrained off"
    )
    why = f"{file['repo_id']} is not cached whole, and can't be had"
    with _explained(f"encoder {name}", why, remedy):
        try:
            path = hf_hub_download(**file, local_files_only=True)
        except FileNotFoundError:
            _knock(f"https://huggingface.co/{file['repo_id']}")
            path = hf_hub_download(**file)
        encoder.load_state_dict(load_file(path))


@contextmanager
def timm_weights(name: str) -> Iterator[None]:
    """Say what it means where timm can't load weights of a network in the ``with`` block.

    Raises:
        PretrainedWeightsError: there are none, or they are not in Hugging Face's cache and can't be fetched.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache

    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not repository:
        raise PretrainedWeightsError(
            f"timm:{name}", "it has no ImageNet weights", "Take another or leave pretrained off"
        )
    remedy = (
        f"Fetch it on a machine that can by 'hf download {repository}' and copy Hugging Face's cache here "
        "(the folder in HF_HOME), or leave pretrained off"
    )
    with _explained(f"timm:{name}", f"{repository} is not cached, and can't be had", remedy):
        if not isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
            _knock(f"https://huggingface.co/{repository}")
        yield


@contextmanager
def _explained(name: str, why: str, remedy: str) -> Iterator[None]:
    """Say of what fails in the ``with`` block what it means, and what to do."""
    try:
        yield
    except _FAILURES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PretrainedWeightsError(
            f"no pretrained weights for {name}", f"{why} ({reason})", remedy
        ) from error


def _knock(url: str) -> None:
    """See that a server answers before it is asked for much: the libraries wait long, or retry."""
    import requests

    requests.head(url, timeout=_PATIENCE_S, allow_redirects=True).raise_for_status()
