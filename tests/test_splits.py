"""Folds: no group on two sides, classes shared out, everything tested once."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from r2l.datasets.splits import group_folds, published_resampling, split_indices


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), min_size=12, max_size=60).filter(lambda g: len(set(g)) >= 4),
    n_splits=st.integers(2, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_no_group_stands_on_two_sides_and_each_image_is_tested_once(groups, n_splits, seed):
    groups = np.array(groups)
    labels = np.random.default_rng(seed).integers(0, 2, len(groups))
    try:
        folds = group_folds(labels, groups, n_splits, seed)
    except ValueError:  # a few large groups can't always be spread
        reject()
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), range(len(groups)))
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    np.testing.assert_array_equal(tested, np.arange(len(groups)))


def test_class_shares_are_kept_where_groups_allow():
    groups = np.arange(300) // 3
    labels = (groups % 5 == 0).astype(int)  # a fifth of the groups is of class 1
    for fold in group_folds(labels, groups, 5):
        assert labels[fold.test].mean() == pytest.approx(0.2, abs=0.02)


def test_same_seed_same_folds_and_global_generator_untouched():
    labels, groups = np.arange(60) % 3, np.arange(60) // 2
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for cut in (partial(group_folds, labels, groups, 3), partial(published_resampling, labels)):
        first, again, other = (np.concatenate([f.test for f in cut(seed=s)]).tolist() for s in (1, 1, 2))
        assert first == again != other
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_without_groups_every_image_is_its_own_and_rare_classes_are_no_reason_to_warn(recwarn):
    assert [len(fold.test) for fold in group_folds(np.arange(20) % 2, n_splits=4)] == [5, 5, 5, 5]
    group_folds([0] * 29 + [1], np.arange(30), 5)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("groups", "n_splits", "message"),
    [
        ([0, 0, 1, 1], 3, "2 groups"),
        ([0, 1, 2], 2, "one label"),
        ([0, 1, 2, 3], 1, "n_splits"),
        ([5, 5, 5, 5], 2, "1 group nothing can be held out: use more images"),
        ([0, np.nan, 1, np.nan], 2, r"2 of 4 images have none \(the first is image 1\)"),
        (["a", "b", "b", None], 2, r"1 of 4 images have none \(the first is image 3\)"),
    ],
)
def test_impossible_splits_say_why(groups, n_splits, message):
    with pytest.raises(ValueError, match=message):
        group_folds([0, 1, 0, 1], groups, n_splits)
    with pytest.raises(ValueError, match=r"labels such as 0.5 are numbers.*give classes"):
        group_folds([1.0, 1.0, 0.5, 0.5], n_splits=2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_test_part_shares_no_group_with_the_folds(seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(120) // 4)
    labels = rng.integers(0, 3, len(groups))
    validated = []
    for fold in range(5):
        cut = {"fold": fold, "seed": seed}
        train, val, test = (split_indices(s, labels, groups, **cut) for s in ("train", "val", "test"))
        assert len(test) / len(labels) == pytest.approx(0.2, abs=0.05)
        sides = [set(groups[part]) for part in (train, val, test)]
        assert len(set().union(*sides)) == sum(map(len, sides))
        np.testing.assert_array_equal(np.sort(np.concatenate([train, val, test])), np.arange(len(labels)))
        validated += val.tolist()
    assert len(set(validated)) == len(validated) == len(labels) - len(test)


@pytest.mark.parametrize("n_groups", [3, 4, 5])
def test_a_handful_of_groups_makes_fewer_folds(n_groups):
    groups = np.arange(30) % n_groups
    labels = np.zeros(30, int)
    parts = [split_indices(split, labels, groups) for split in ("train", "val", "test")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(30))
    assert all(len(part) for part in parts)
    with pytest.raises(ValueError, match="choose from 0 to"):
        split_indices("train", labels, groups, fold=n_groups - 1)
    with pytest.raises(ValueError, match='take split="all"'):
        split_indices("train", np.zeros(8, int), np.arange(8) % 2)


def test_published_resampling_is_80_20_and_overlapping():
    labels = np.repeat([0, 1], [80, 20])
    drawings = published_resampling(labels, seed=5)
    assert len(drawings) == 5
    for train, val in drawings:
        assert (len(train), len(val)) == (80, 20)
        assert labels[val].sum() == 4
        assert not set(train) & set(val)
    validated = np.concatenate([fold.test for fold in drawings])
    assert len(set(validated)) < len(validated)
    plain = published_resampling(labels, seed=5, stratified=False)
    assert any(labels[fold.test].sum() != 4 for fold in plain)
