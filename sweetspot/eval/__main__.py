"""`python -m sweetspot.eval compare MANIFEST MANIFEST ...`: evaluations of several runs beside each other."""

import sys

from sweetspot.eval import compare
from sweetspot.store import StoreError
from sweetspot.visible import one_line

COMMANDS = {"compare": compare.main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"error: name a command: {', '.join(COMMANDS)}")
    try:
        COMMANDS[sys.argv[1]](sys.argv[2:])
    except (ValueError, StoreError) as error:
        sys.exit(f"error: {one_line(str(error))}")
