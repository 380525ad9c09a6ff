"""`python -m intsmooth_ref` is the command `intsmooth-ref`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C is one line even while modules are loaded."""
    try:
        from .cli import main as command

        return command()
    except KeyboardInterrupt:
        print("intsmooth-ref: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
