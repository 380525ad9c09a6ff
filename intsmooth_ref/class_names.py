"""The names of classes: what one may be, and whether images and a model speak of the same classes."""

from __future__ import annotations

from typing import Sequence

from .errors import DatasetError

CLASS_NAME_RULE = "printable text, one character at least"


def is_class_name(name: object) -> bool:
    """Two classes may have one name: in ImageNet, two are called "crane"."""
    return isinstance(name, str) and name != "" and name.isprintable()


def check_same_classes(images: Sequence[str], model: Sequence[str], where: object) -> None:
    """Refuse images whose labels mean other classes than the model's scores; without names there is nothing to compare.

    Args:
        images, model: the names of the classes of each, in order; empty if they have none.
        where: the file of the images, or whatever names it.

    Raises:
        DatasetError: which class differs.
    """
    if not images or not model:
        return
    if len(images) != len(model):
        found, expected = f"{len(images)} named classes ({_listed(images)})", f"{len(model)} ({_listed(model)})"
        raise DatasetError(f"{where}: found {found}; expected {expected}, the model's")
    for index, (found, expected) in enumerate(zip(images, model)):
        if found != expected:
            raise DatasetError(f"{where}: found class {index} called {found!r}; expected {expected!r}, as in the model")


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)
