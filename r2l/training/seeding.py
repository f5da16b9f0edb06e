"""Random generators: seeded for the length of a block, put back where they were; one seed for one place."""

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# Held by the thread that draws; it may seed again within.
_ALONE = threading.RLock()


def global_states() -> dict[str, Any]:
    """Return the states of the global generators of torch, numpy and Python, as a checkpoint holds them."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - other people's transforms draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_global_states(states: Mapping[str, Any]) -> None:
    """Put the global generators where `global_states` found them."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python; put their states back at the end.

    One thread of a process at a time: the generators are the process's, so that others wait here.

    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with _ALONE:
        states = global_states()
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - as above
            yield
        finally:
            set_global_states(states)


def mixed_seed(*place: int) -> int:
    """Return one seed for a place (seed, fold) in an experiment; no two places share their draws.

    Fold 1 of seed 0 would share them with fold 0 of seed 1 if the two were added.

    >>> mixed_seed(0, 1) == mixed_seed(1, 0)
    False
    """
    return int(np.random.SeedSequence(place).generate_state(1)[0])
