"""`python -m intsmooth_ref` is the command `intsmooth-ref`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
