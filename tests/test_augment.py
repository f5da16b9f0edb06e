"""Augmentation: image and mask together, each image by its own draw, nothing else disturbed."""

import numpy as np
import pytest
import torch

from r2l.training import fit, make_classifier
from r2l.training.checkpoints import seeded
from r2l.training.module import make_augment
from tests.test_training import Shades


def pictures(n=24, size=(20, 20), seed=3):
    """Smooth images whose red channel is the mask."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, 1, *size)
    for mask, place in zip(masks, torch.randint(2, 12, (n, 2), generator=generator), strict=True):
        mask[0, place[0] : place[0] + 6, place[1] : place[1] + 4] = 1
    images = torch.rand(n, 3, *size, generator=generator) * 0.5
    images[:, :1] = masks
    return images, masks


def augmented(strength, *pair, seed=0):
    with seeded(seed):
        return make_augment(strength)(*pair)


def dihedral(image):
    """The eight pictures that flips and quarter turns make of one, by numpy."""
    turned = [np.rot90(image, k, (-2, -1)) for k in range(4)]
    return [t.copy() for t in turned] + [np.flip(t, -1).copy() for t in turned]


@pytest.mark.parametrize("strength", ["weak", "strong"])
@pytest.mark.parametrize("size", [(20, 20), (20, 28)])
def test_image_and_mask_move_together_and_masks_stay_binary(strength, size):
    images, masks = pictures(size=size)
    seen, moved = augmented(strength, images, masks)
    assert seen.shape == images.shape
    assert moved.shape == masks.shape
    assert moved.unique().tolist() == [0, 1]
    assert not torch.equal(moved, masks)
    red = seen[:, :1]
    # Interpolation and jitter soften the edges; the places agree.
    assert red[moved > 0].mean() > (1 - 1e-6 if strength == "weak" else 0.7)
    assert red[moved == 0].mean() < (1e-6 if strength == "weak" else 0.1)


@pytest.mark.parametrize(("size", "n_views"), [((20, 20), 8), ((20, 28), 4)])
def test_weak_makes_all_views_of_the_same_shape_and_no_others(size, n_views):
    image = pictures(1, size)[0]
    seen, _ = augmented("weak", image.expand(25 * n_views, -1, -1, -1))
    views = [v for v in dihedral(image[0].numpy()) if v.shape == image.shape[1:]]
    which = [[np.array_equal(s, v) for v in views].index(True) for s in seen.numpy()]
    assert np.bincount(which, minlength=n_views).min() >= 10, "equally likely: 25 each"


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_each_image_has_a_draw_of_its_own_which_follows_from_the_seed(strength):
    images, masks = pictures()
    before = images.clone(), masks.clone()
    whole, _ = augmented(strength, images, masks, seed=7)
    again, _ = augmented(strength, images, masks, seed=7)
    assert torch.equal(again, whole)
    other, _ = augmented(strength, images, masks, seed=8)
    assert (other != whole).flatten(1).any(1).float().mean() > 0.6
    assert torch.equal(images, before[0]), "inputs stay"
    assert torch.equal(masks, before[1])
    same, _ = augmented(strength, images[:1].expand(24, -1, -1, -1))
    assert len({s.numpy().tobytes() for s in same}) > 5, "each image by itself"


def test_gradients_pass_to_the_image():
    images = pictures()[0].requires_grad_()
    seen, _ = augmented("weak", images)
    weights = torch.rand_like(seen)
    (seen * weights).sum().backward()
    torch.testing.assert_close(images.grad.sum((1, 2, 3)), weights.sum((1, 2, 3)))
    images = pictures()[0].mul(0.5).add(0.25).requires_grad_()
    seen, _ = augmented("strong", images)
    seen.sum().backward()
    assert (images.grad.flatten(1) != 0).float().mean() > 0.8


def test_strong_moves_as_little_as_it_says():
    """A disc in the middle of a plain image stays in the middle, and no black comes in at the border."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((rows - 31.5) ** 2 + (columns - 31.5) ** 2 < 10**2).float()
    seen, masks = augmented("strong", (0.5 + 0.3 * disc).expand(40, 3, 64, 64), disc.expand(40, 1, 64, 64))
    assert seen[..., 0, 0].min() > 0.3
    area = masks.sum((1, 2, 3)) / disc.sum()
    assert 0.78 < area.min() < area.max() < 1.25  # scales of 0.9 to 1.1
    centre = (masks * rows).sum((1, 2, 3)) / masks.sum((1, 2, 3)) - 31.5
    assert 0.5 < centre.abs().max() < 0.05 * 64 * 1.1 + 1
    ratio = seen[:, 0, 0, 0] / 0.5
    assert 0.6 < ratio.min() < 0.95 < 1.05 < ratio.max() < 1.5


def test_unknown_strength_lists_those_that_exist():
    assert make_augment("none") is None
    with pytest.raises(ValueError, match="'harsh'; choose from none, weak, strong"):
        make_augment("harsh")


def test_only_training_sees_it():
    class Seen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = make_classifier("SmallResNet", 3)
            self.images = {True: [], False: []}

        def forward(self, image):
            self.images[self.training].append(image.detach().clone())
            return self.network(image)

    data = Shades(12)
    settings = {"validation": data, "epochs": 1, "batch_size": 12, "progress": False}
    images = fit(Seen, data, augmentation="weak", **settings).model.images
    assert torch.equal(images[False][0], data.frames)
    known = {v.tobytes(): i for i, f in enumerate(data.frames.numpy()) for v in dihedral(f)}
    trained_on = images[True][0].numpy()
    assert sorted(known[i.tobytes()] for i in trained_on) == list(range(12)), "the same images, turned"
    plain = {f.tobytes() for f in data.frames.numpy()}
    assert any(i.tobytes() not in plain for i in trained_on)
