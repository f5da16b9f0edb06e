"""Checks of exercises: right, wrong with a hint, unanswered; and each lesson's own."""

import numpy as np
import pytest
import torch

from r2l.exercises import check, compare, expect


@pytest.mark.parametrize(
    ("right", "wrong", "hint"),
    [
        (0.12, -0.12, "wrong sign"),
        (0.12, 12.0, "per cent"),
        (12.0, 0.12, "share"),
        (3.0, 30.0, "decimal point"),
        (3.0, 1.5, "halved"),
        (3.0, 9.0, "square"),
        (9.0, 3.0, "root"),
        (3.0, 4.0, "Too large: 1.3 times"),
        (3.0, -7.0, "sign is the other"),
        (3.0, 5.0, "the other group"),
        (3.0, "three", "A number"),
        (3.0, [3.0, 3.0], "a single number is asked for"),
        (np.array([1.0, 2.0]), [1.0], "an array of shape (2,)"),
        (np.array([1.0, 2.0]), [1.0, np.nan], "no finite number"),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 3.0]), "entry 1: 3, and not 2"),
        (np.array([1.0, 2.0]), [-1.0, -2.0], "wrong sign"),
        (0.0, 1.0, "Too large"),
    ],
)
def test_a_wrong_answer_gets_a_hint(right, wrong, hint):
    expect("t", right, hints=[(5.0, "That is the other group.")])
    assert check("t", right), "right to begin with"
    verdict = check("t", wrong)
    assert verdict.right is False
    assert hint in verdict.text


@pytest.mark.parametrize("nothing", [None, ..., lambda x: None, lambda x: ...])
def test_no_answer_is_no_mistake(nothing):
    expect("t", 4.0, through=lambda f: f(2.0) + 1 if callable(nothing) else nothing)
    verdict = check("t", nothing)
    assert verdict.right is None
    assert not verdict
    assert "No answer yet" in str(verdict)


def test_a_word_of_several():
    expect("t", "red", hints=[("blue", "Blue has fewest electrons.")])
    assert check("t", " red ")
    assert "fewest" in check("t", "blue").text
    assert "one of blue, red" in check("t", "violet").text


def test_functions_are_asked_and_may_fail():
    expect("t", 4.0, through=lambda square: square(2.0))
    assert check("t", lambda x: x * x)
    assert "square" in check("t", lambda x: 16.0).text
    assert "ZeroDivisionError" in check("t", lambda x: x / 0).text
    assert "halved" in check("t", lambda x: x).text


def test_what_was_not_registered_is_told():
    with pytest.raises(ValueError, match=r"unknown exercise 'nowhere'.*Run the cells above"):
        check("nowhere", 1)


def test_a_guess_beside_the_result():
    assert "No guess" in compare(None, 0.1)
    assert "close" in compare(0.11, 0.1)
    assert "another sign" in compare(-0.1, 0.1)
    assert "3 times" in compare(0.3, 0.1)
    assert "inf times" in compare(0.3, 0.0)
    assert "close" in compare(0, 0)
