"""`python -m sweetspot.sweep status|collect|resubmit|cancel DIR`: what became of a sweep, and how it goes on."""

import sys

from sweetspot.store import StoreError
from sweetspot.sweep.command import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, StoreError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
