"""Folds: no group on two sides, classes shared out, everything tested once."""

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from r2l.training import group_folds


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
    first, again, other = (group_folds(labels, groups, 3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert all(np.array_equal(a.test, b.test) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(first, other, strict=True))


def test_without_groups_every_image_is_its_own():
    labels = np.arange(20) % 2
    assert [len(fold.test) for fold in group_folds(labels, n_splits=4)] == [5, 5, 5, 5]


def test_classes_with_fewer_images_than_folds_are_no_reason_to_warn(recwarn):
    group_folds([0] * 29 + [1], np.arange(30), 5)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("groups", "n_splits", "message"),
    [([0, 0, 1, 1], 3, "2 groups"), ([0, 1, 2], 2, "one label"), ([0, 1, 2, 3], 1, "n_splits")],
)
def test_impossible_splits_say_why(groups, n_splits, message):
    with pytest.raises(ValueError, match=message):
        group_folds([0, 1, 0, 1], groups, n_splits)
