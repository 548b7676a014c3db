"""What took how long: spans of time, their typical length, and the file in which to look at them.

spans          what an instance did when, recorded only while a trace is asked for
durations      the typical one of several measured times
chrome_events  the events of a Chrome trace, whatever they are about

A live service is recorded by `cluster.tracing` and drawn by `profiling.chrome_trace`; a simulation
is drawn by `planner.simulation.chrome`. Both drawings are made of `chrome_events`.
"""

from janus_moe.tracing.spans import Span, SpanLog

__all__ = ["Span", "SpanLog"]
