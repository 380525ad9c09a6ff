"""Messages to people, on standard error: each is one line, whatever the names of files in it hold."""

from __future__ import annotations

import sys

PROGRAM = "intsmooth-ref"


def one_line(text: str) -> str:
    """The text with what cannot be printed, a newline say, written as an escape sequence."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def counted(number: int, one: str, several: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {one if number == 1 else several}"


def say(message: str) -> None:
    """Write a message in the name of the program."""
    print(f"{PROGRAM}: {one_line(message)}", file=sys.stderr)
