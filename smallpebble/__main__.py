"""``python -m smallpebble``: see `smallpebble.cli`."""

import sys

from smallpebble.cli import main

if __name__ == "__main__":
    sys.exit(main())
