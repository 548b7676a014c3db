"""`python -m janus_moe.cli` is `janus`."""

import sys

from janus_moe.cli import main

sys.exit(main())
