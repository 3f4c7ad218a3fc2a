"""`python -m sweetspot.sweep status|collect|resubmit|cancel DIR`: what became of a sweep, and how it goes on."""

import sys

from sweetspot.store import StoreError
from sweetspot.sweep.command import main
from sweetspot.visible import one_line

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, StoreError, OSError) as error:
        sys.exit(f"error: {one_line(str(error))}")
