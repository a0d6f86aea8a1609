"""The error tree: drawn as it is, and fit to cross process borders."""

import inspect
import pickle
import re

import pytest

from deployments import errors
from deployments.errors import ServiceError

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, ServiceError)]


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Parent and status of each class, as the module's docstring draws them; a status is inherited if not drawn."""
    tree: dict[str, tuple[str | None, int]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: (?P<status>\d{3}))?(?: |$)", line)
        if match is None or not (match["branch"] or match["name"] == "ServiceError"):
            continue
        depth = len(match["branch"]) // 4
        parent = above[depth - 1] if depth else None
        inherited = tree[parent][1] if parent else 500
        tree[match["name"]] = (parent, int(match["status"] or inherited))
        above[depth:] = [match["name"]]
    return tree


def test_the_docstring_draws_every_class_with_its_parent_and_status() -> None:
    actual = {
        error.__name__: (None if error is ServiceError else error.__bases__[0].__name__, error.status)
        for error in CLASSES
    }

    assert drawn_tree() == actual


@pytest.mark.parametrize("error", CLASSES)
def test_an_error_survives_pickling(error: type[ServiceError]) -> None:
    copy = pickle.loads(pickle.dumps(error("point_coords: is empty")))

    assert type(copy) is error
    assert copy.message == "point_coords: is empty"
    assert str(copy) == "point_coords: is empty"
    assert copy.status == error.status
    assert copy.retry_after_s == error.retry_after_s


@pytest.mark.parametrize("error", CLASSES)
def test_an_error_takes_exactly_one_positional_message(error: type[ServiceError]) -> None:
    with pytest.raises(TypeError):
        error()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        error("one", "two")  # type: ignore[call-arg]


@pytest.mark.parametrize("error", CLASSES)
def test_what_may_succeed_later_says_when_to_try_again(error: type[ServiceError]) -> None:
    assert (error.retry_after_s is not None) == (error.status == 503)
