"""Run ``python -m vlmad_utils.data.fetch``.

The command is no part of the module that ``vlmad_utils.data`` imports: Python would warn of it.
"""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
