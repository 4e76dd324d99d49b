"""`python -m rawdiff` is `rawdiff`."""

import sys

from rawdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
