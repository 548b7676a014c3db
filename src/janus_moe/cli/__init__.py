"""The `janus` command: one module per subcommand, imported only when it is asked for."""

from janus_moe.cli.main import main

__all__ = ["main"]
