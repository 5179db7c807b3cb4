"""``python -m spinup_plugins`` is the command line ``spinup``."""

import sys

from spinup_plugins.cli import main

sys.exit(main())
