"""``python -m mesh`` is ``mesh``."""

import sys

from mesh.cli import main

sys.exit(main())
