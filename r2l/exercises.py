"""Exercises whose answers are checked, with a word on what went wrong.

A lesson tells with `expect` what is right, from the variables of the run it is in; a reader writes an
answer below a question, and `check` compares. No result is kept here. What stays `None` or ``...``
counts as unanswered, so that a notebook runs from top to bottom without its reader.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_FACTORS = (
    (100, "A hundred times too large: a share is asked for, not per cent."),
    (0.01, "A hundredth of it: per cent are asked for, not a share."),
    (10, "Ten times too large: a decimal point?"),
    (0.1, "A tenth of it: a decimal point?"),
    (2, "Twice as large as it should be: is something counted twice, or a half left out?"),
    (0.5, "Half of it: is something halved that should not be?"),
)


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether an answer is right (None: there is none yet), and what to say; true only if right."""

    right: bool | None
    text: str

    def __bool__(self) -> bool:
        return self.right is True

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Exercise:
    right: Any
    within: float
    through: Callable[[Any], Any] | None
    hints: tuple[tuple[Any, str], ...]

    def mistake(self, answer: Any) -> str:
        if isinstance(self.right, str):
            hints = dict(self.hints) | {self.right: ""}
            answer = str(answer).strip()
            return hints.get(answer, f"Answer with one of {', '.join(sorted(hints))}.")
        try:
            given, right = (_numbers(value) for value in (answer, self.right))
        except (TypeError, ValueError):
            return f"A number is asked for, not {answer!r}."
        if given.shape != right.shape:
            wanted = f"an array of shape {right.shape}" if right.ndim else "a single number"
            return f"The shape is {given.shape}, and {wanted} is asked for."
        if not np.isfinite(given).all():
            return "It holds what is no finite number (nan or inf): was something divided by nothing?"
        if self._same(given, right):
            return ""
        for value, hint in self.hints:
            if np.shape(value) == right.shape and self._same(given, _numbers(value)):
                return hint
        return self._guess_why(given, right)

    def _same(self, given: np.ndarray, right: np.ndarray) -> bool:
        scale = np.abs(right).max(initial=0.0)
        return bool(np.allclose(given, right, rtol=self.within, atol=self.within * scale / 10))

    def _guess_why(self, given: np.ndarray, right: np.ndarray) -> str:
        if self._same(given, -right):
            return "The right size with the wrong sign: which of the two is taken from the other?"
        for factor, hint in _FACTORS:
            if self._same(given / factor, right):
                return hint
        if self._same(given, right**2):
            return "That is its square."
        if self._same(given**2, right):
            return "That is its root."
        if right.ndim:
            at = np.unravel_index(np.abs(given - right).argmax(), right.shape)
            where = ", ".join(map(str, at))
            return f"Farthest off is entry {where}: {given[at]:.4g}, and not {right[at]:.4g}."
        if given * right < 0:
            return "The sign is the other one, and the size is off as well."
        times = abs(float(given / right)) if right else np.inf
        return f"Too {'large' if times > 1 else 'small'}: {times:.2g} times what this run says."


_EXERCISES: dict[str, _Exercise] = {}


def _numbers(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=float)


def expect(
    name: str,
    right: Any,
    *,
    within: float = 0.05,
    through: Callable[[Any], Any] | None = None,
    hints: Sequence[tuple[Any, str]] = (),
) -> None:
    """Tell what is right, for `check`; the same name again replaces it.

    Args:
        name: of the exercise, as "03.2".
        right: a number or an array of numbers, or one word of several.
        within: how far a number may be off, as a share of it.
        through: for an answer that is a function: makes of it the number or array to be compared.
        hints: wrong answers that are to be expected and what to say to each. For a word, all other choices.

    >>> expect("0.1", 3.0, hints=[(4.0, "That is the other camera's.")])
    >>> check("0.1", -3)
    Not yet. The right size with the wrong sign: which of the two is taken from the other?
    >>> check("0.1", 4)
    Not yet. That is the other camera's.
    >>> expect("0.2", 9.0, through=lambda square: square(3))
    >>> check("0.2", lambda x: x**2)
    Right.
    """
    _EXERCISES[name] = _Exercise(right, within, through, tuple(hints))


def check(name: str, answer: Any) -> Verdict:
    """Return whether an answer is right and, if not, a hint.

    Raises:
        ValueError: no exercise has this name, or the cell that tells what is right has not run yet.
    """
    if (exercise := _EXERCISES.get(name)) is None:
        remedy = "Run the cells above first, the folded ones too: they say what is right in this run"
        raise ValueError(
            f"unknown exercise {name!r}; so far there are {', '.join(_EXERCISES) or 'none'}. {remedy}"
        )
    nothing = Verdict(None, "No answer yet: put yours in place of None or ... and run the cell again.")
    if answer is None or answer is ...:
        return nothing
    unanswered = False

    def asked(*arguments: Any, **named: Any) -> Any:
        nonlocal unanswered
        result = answer(*arguments, **named)
        unanswered |= result is None or result is ...
        return result

    try:
        value = exercise.through(asked if callable(answer) else answer) if exercise.through else answer
        raised = ""
    except Exception as error:  # whatever a reader's function may raise
        raised = f"It raises {type(error).__name__}: {error}"
    if unanswered:
        return nothing
    mistake = raised or exercise.mistake(value)
    return Verdict(not mistake, f"Not yet. {mistake}" if mistake else "Right.")


def compare(guess: float | None, seen: float) -> str:
    """Return a sentence that holds a guess against what a run has shown.

    >>> print(compare(0.4, 0.1))
    Your guess 0.4, this run 0.1: 4 times as much as it is.
    """
    if guess is None or guess is ...:
        return f"No guess written down; this run says {seen:.3g}."
    times = 1.0 if guess == seen else guess / seen if seen else np.inf
    verdict = "close" if 0.8 < times < 1.25 else f"{times:.2g} times as much as it is"
    verdict = "another sign" if guess * seen < 0 else verdict
    return f"Your guess {guess:.3g}, this run {seen:.3g}: {verdict}."
