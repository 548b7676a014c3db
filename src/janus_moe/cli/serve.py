"""`janus serve`: settings in, a running service out.

Flags are read before anything heavy is loaded.
"""

from __future__ import annotations

import os

from janus_moe.cli import cluster_file
from janus_moe.cli.cluster_file import ClusterFile
from janus_moe.cli.flags import Command, Values
from janus_moe.config import ClusterConfig, EngineConfig, ServerConfig


def run(engine: EngineConfig, server: ServerConfig, _: ClusterFile, cluster: ClusterConfig) -> int:
    """Serves until told to stop; 0 after a clean shutdown, 1 when the service was lost."""
    from janus_moe.cli.serving import serve

    return serve(engine, server, cluster)


def complete(values: Values) -> Values:
    """Returns settings with the key of the environment and what a cluster file implies.

    An empty key is one too, which is refused: a service without a key must be wanted.
    """
    key = os.environ.get("JANUS_API_KEY")
    return cluster_file.complete({**({} if key is None else {"api_key": key}), **values})


COMMAND = Command(
    options=(EngineConfig, ServerConfig, ClusterFile, ClusterConfig), run=run, complete=complete
)
