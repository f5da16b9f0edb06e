"""Networks for the task models by name: the published ones, torchvision's, timm's, one's own; and weights."""

import difflib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from r2l.files import R2LError, load_named

#: The published names, and one of ours.
CLASSIFIERS = ("ResNet18", "ResNet34", "ResNet50", "SmallResNet")
# Both answer in training with a second, auxiliary answer, unless told not to.
_SINGLE = {n: {"aux_logits": False, "init_weights": True} for n in ("googlenet", "inception_v3")}
# What fetching and reading can end in.
_FAILURES = (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError)
_FAILURES += (pickle.UnpicklingError, SafetensorError)
_PATIENCE_S = 10.0  # how long a server may take to answer


class PretrainedWeightsError(R2LError, OSError):
    """Pretrained weights are neither in the cache nor to be had; says where they belong."""


def _load_imagenet_weights(network: nn.Module, name: str) -> None:
    """Load torchvision's ImageNet weights into a network of it, in place, all but its last layer."""
    import torchvision

    kinds = torchvision.models.get_model_weights(name)
    weights = getattr(kinds, "IMAGENET1K_V1", kinds.DEFAULT)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rsplit("/", 1)[-1]
    remedy = f"fetch {weights.url} on a machine that can, put it into {folder}, or leave pretrained off"
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
    """Load an encoder's ImageNet weights in place, from Hugging Face's cache, else fetched.

    Its own ``encoder_weights`` asks the server, with many retries, also for what is cached.
    """
    from safetensors.torch import load_file
    from segmentation_models_pytorch.encoders import encoders, hf_hub_download

    settings = encoders[name].get("pretrained_settings", {}).get("imagenet", {})
    source = settings.get("repo_id"), settings.get("revision")
    with _hub(f"encoder {name}", *source) as path:
        path = path or hf_hub_download(source[0], "model.safetensors", revision=source[1])
        encoder.load_state_dict(load_file(path))


@contextmanager
def _hub(name: str, repository: str | None, revision: str | None = None) -> Iterator[str | None]:
    """Give the path of a repository's weights if they are cached, and say of what fails what it means."""
    from huggingface_hub import try_to_load_from_cache

    if not repository:
        why = "it has no ImageNet weights"
        raise PretrainedWeightsError(name, why, "Take another or leave pretrained off")
    fetched = repository if revision is None else f"{repository} --revision {revision}"
    remedy = f"Fetch it on a machine that can by 'hf download {fetched}' and copy Hugging Face's cache here "
    remedy += "(the folder in HF_HOME), or leave pretrained off"
    with _explained(name, f"{repository} is not cached whole, and can't be had", remedy):
        path = try_to_load_from_cache(repository, "model.safetensors", revision=revision)
        if not isinstance(path, str):
            _knock(f"https://huggingface.co/{repository}")
        yield path if isinstance(path, str) else None


@contextmanager
def _explained(name: str, why: str, remedy: str) -> Iterator[None]:
    """Say of what fails in the ``with`` block what it means, and what to do."""
    try:
        yield
    except _FAILURES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = f"no pretrained weights for {name}"
        raise PretrainedWeightsError(what, f"{why} ({reason})", remedy) from error


def _knock(url: str) -> None:
    """See that a server answers before it is asked for much: the libraries wait long, or retry."""
    import requests

    requests.head(url, timeout=_PATIENCE_S, allow_redirects=True).raise_for_status()


def _halving_block(channels_in: int, channels_out: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock  # takes seconds: only to make a network

    shortcut = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False), nn.BatchNorm2d(channels_out)
    )
    return BasicBlock(channels_in, channels_out, stride=2, downsample=shortcut)


def _small_resnet(num_classes: int) -> nn.Module:
    """Return a residual network of about 70,000 weights for tiles of 32 to 96 pixels.

    A dozen of them are trained in a minute on two cores. Any tile size from 16 pixels on works.
    """
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        _halving_block(16, 32),
        _halving_block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def is_own_code(name: object) -> bool:
    """Tell whether a network's name is ``module:function``, which to make runs code of one's own."""
    return isinstance(name, str) and ":" in name and not name.startswith("timm:")


def check_network(name: str) -> str:
    """Return whose a network is: "torchvision", "timm", or "own code", which is neither looked for nor run.

    A ValueError of an unknown name lists what there is, and what is spelt nearly so.
    """
    text = str(name)  # of a file it can be anything
    if is_own_code(name):
        return "own code"
    if text in CLASSIFIERS:
        return "torchvision"
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    if text in theirs:
        return "torchvision"
    import timm  # takes seconds: only for those who use it

    if timm.is_model(text.removeprefix("timm:")):
        return "timm"
    everything = [*CLASSIFIERS, *theirs, *timm.list_models()]
    near = difflib.get_close_matches(text.removeprefix("timm:"), everything)
    raise ValueError(
        f"unknown classifier {name!r}; choose from {', '.join(CLASSIFIERS)}, torchvision's {len(theirs)} "
        f"(such as {theirs[0]}), timm's {len(timm.list_models())} (such as timm:convnext_tiny), or "
        "module:function of your own" + (f". Did you mean {' or '.join(near)}?" if near else "")
    )


def make_network(name: str, n_outputs: int, pretrained: bool = False) -> nn.Module:
    """Return a fresh network: normalised images (B, 3, H, W) to (B, n_outputs); see `make_classifier`."""
    source = check_network(name)
    if pretrained and (name == "SmallResNet" or name in _SINGLE or source == "own code"):
        raise ValueError(f"{name} has no pretrained weights; leave pretrained off or take a ResNet")
    if source == "own code":
        network = load_named(name, "network")(n_outputs)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name} made a {type(network).__name__}, expected a torch module")
        return network
    if name == "SmallResNet":
        return _small_resnet(n_outputs)
    if source == "torchvision":
        import torchvision

        network = torchvision.models.get_model(name, num_classes=n_outputs, **_SINGLE.get(name, {}))
        if pretrained:
            _load_imagenet_weights(network, name)
        return network
    import timm

    name = name.removeprefix("timm:")
    if not pretrained:
        return timm.create_model(name, num_classes=n_outputs)
    with _hub(f"timm:{name}", getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)):
        return timm.create_model(name, num_classes=n_outputs, pretrained=True)
