"""`janus trace`: decodes a small batch and writes who did what when, as a Chrome trace.

Flags are read before anything heavy is loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import msgspec

from janus_moe.cli import cluster_file
from janus_moe.cli.cluster_file import ClusterFile
from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import write_text
from janus_moe.config import ClusterConfig, EngineConfig


class TraceOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is decoded, and where the trace goes."""

    steps: Annotated[int, flag("decode steps in the trace", at_least=1)] = 3
    batch: Annotated[int, flag("requests, over all instances", at_least=1)] = 8
    prompt_tokens: Annotated[int, flag("of each request", at_least=1)] = 16
    out: Annotated[Path, flag("file to write", writes="file")] = Path("trace.json")


def run(options: TraceOptions, engine: EngineConfig, _: ClusterFile, cluster: ClusterConfig) -> int:
    """Starts a service, traces it, stops it."""
    from janus_moe.cli.tracing_run import trace_of

    trace = trace_of(engine, cluster, (options.batch, options.prompt_tokens, options.steps))
    write_text(options.out, json.dumps(trace))
    events = sum(event["ph"] == "X" for event in trace["traceEvents"])
    print(f"{options.out}: {events} events; open it at https://ui.perfetto.dev", file=sys.stderr)
    return 0


COMMAND = Command(
    options=(TraceOptions, EngineConfig, ClusterFile, ClusterConfig),
    run=run,
    complete=cluster_file.complete,
)
