"""What stands before the figures in the report: how to read it, and its settings."""

from __future__ import annotations

from collections.abc import Mapping

from janus_moe.planner.search.paper import LAYER_S, PUBLISHED, TOKEN_S
from paper.figure import Data
from paper.findings import findings
from paper.report import facts_table
from paper.routing import PAPER_SPREAD, SLOTS
from paper.settings import CALIBRATIONS, CONTEXT, oracle, paper_amax

TEXT = """
# The paper's evaluation

Figures 1 to 4 and 8 to 17 of Janus (arXiv 2512.13525v3), made again by `make figures` with this
repository's scheduler, placements, exchange plans, latency oracle and planner. The paper measured
32 H100; nothing below is measured on a GPU. Each figure says what is measured, fitted, modelled or
synthetic, and each difference has its reason.

## How to read it

The paper's traces are not public. Routing is synthetic, with one parameter fitted to four values
that the paper prints (figure 17). Time comes in two calibrations, which are never mixed:

- fitted: laws of single kernels on H100, from published tables, and links with data sheet figures.
  It says what the paper's hardware could do.
- paper: the same, plus {layer_us:.0f} us per layer and {token_us:.1f} us per layer and token of an
  attention instance. This is what four throughputs of the paper's own system imply beyond the
  kernels. It holds for all systems alike; no number of a baseline enters.

{facts}

The four points behind the second calibration:

{points}

## What it shows

{findings}
"""


def introduction(data: Mapping[str, Data]) -> str:
    """Writes the introduction in Markdown.

    data: number of a figure -> what it holds; all figures are there.
    """
    return TEXT.format(
        layer_us=1e6 * LAYER_S,
        token_us=1e6 * TOKEN_S,
        facts=facts_table(
            {
                "devices": "4 nodes of 8 H100 SXM 80 GB, 400 Gb/s for each GPU between nodes",
                "model": "DeepSeek-V2 in bfloat16, unless a figure says otherwise",
                "requests": "16 tokens in, 256 out; 144 positions of context on average",
                "slots": f"{SLOTS} per expert instance and layer",
                "routing": f"synthetic, log-normal popularity of spread {PAPER_SPREAD}",
            }
        ),
        points=_points(),
        findings=findings(data),
    )


def _points() -> str:
    lines = [
        "| shape | B | tokens/s per GPU (paper) | TPOT it implies | `fitted` | `paper` |",
        "|---|---|---|---|---|---|",
    ]
    for point in PUBLISHED:
        activated = paper_amax().of(point.num_expert, point.batch, "aebs", "coactivation")
        shape = point.num_attention, point.num_expert
        tpots = []
        for calibration in CALIBRATIONS:
            one = oracle(calibration)
            load = one.pools_load(point.batch, CONTEXT, *shape, activated)
            tpots.append(f"{1e3 * float(one.step_s(load)):.0f} ms")
        lines.append(
            f"| {shape[0]}A{shape[1]}E | {point.batch} | {point.tokens_per_s_per_gpu:.0f} | "
            f"{1e3 * point.tpot_s:.0f} ms | {' | '.join(tpots)} |"
        )
    return "\n".join(lines)
