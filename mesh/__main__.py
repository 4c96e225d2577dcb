"""Entry point of ``python -m mesh``, the same as the command ``mesh``."""

import sys

from mesh.cli import main

sys.exit(main())
