"""`python -m janus_moe.cli` is `janus`."""

import sys

from janus_moe.cli.main import main

sys.exit(main())
