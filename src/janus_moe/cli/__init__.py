"""The `janus` command: one module per subcommand, imported only when it is asked for.

Nothing is imported with this package, so that Ctrl-C is answered from the first moment on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED_STATUS = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `janus ARGV` and returns the exit status."""
    try:
        from janus_moe.cli.commands import run_command

        return run_command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("janus: interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
