"""What programs there are: `python -m intsmooth_ref.data_tools` lists them, one line each, and does nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Iterator, Sequence

#: What is no program has no line of its own.
CLOSING = "A PyTorch module becomes a float model in Python: intsmooth_ref.data_tools.torch_import.float_model."
USAGE = "usage: python -m intsmooth_ref.data_tools.NAME [options]; NAME is one of these, each with a --help of its own"


def programs() -> Iterator[tuple[str, str]]:
    """Name and purpose of each module that can be run, as its own first line says; none of them is imported."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        source = path.read_text("utf-8")
        if '\nif __name__ == "__main__":\n' in source:
            documentation = ast.get_docstring(ast.parse(source)) or ""
            yield path.stem, documentation.partition("\n")[0].partition(":")[0].rstrip(".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list: to standard output if help is asked for, else to standard error; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    asked = list(given) in (["-h"], ["--help"])
    listed = list(programs())
    width = max(len(name) for name, _ in listed)
    lines = [USAGE, "", *(f"    {name:<{width}}  {purpose}" for name, purpose in listed), "", CLOSING]
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
