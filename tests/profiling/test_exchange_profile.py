"""`janus profile exchange`: real processes measure, the file can be read back and used."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from janus_moe.cli import main
from janus_moe.errors import ConfigError
from janus_moe.planner.latency.link_fit import COEFFICIENTS, exchange_seconds
from janus_moe.planner.latency.link_profile import read_link_profile
from janus_moe.planner.latency.links import LinkModel, tcp_links
from janus_moe.profiling import exchange
from janus_moe.profiling.exchange import ExchangeOrder, take_part
from janus_moe.profiling.exchange_run import orders_of
from janus_moe.profiling.exchange_times import (
    Timed,
    distinct_plans,
    fit_timed,
    link_profile,
    spread,
)
from janus_moe.spec import InstanceId, Membership
from janus_moe.transport import ExchangeLayout
from janus_moe.transport.exchange_plans import egate_plan
from janus_moe.transport.exchange_plans.pricing import priced_counts

LAYOUT = ExchangeLayout(
    membership=Membership.on_hosts((0, 0), (1, 1, 2, 2)),
    hidden_size=64,
    dtype="float32",
    max_tokens=64,
)


def test_a_short_profile_of_this_host_can_be_read_and_used(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    nodes = ["--attention-nodes", "0", "--expert-nodes", "1"]
    size = ["--hidden-size", "8", "--batches", "1", "4", "--budget", "0.02"]
    assert main(["profile", "exchange", *nodes, *size, "--json", str(path)]) == 0
    profile = read_link_profile(path)
    assert set(profile.links) == set(COEFFICIENTS)
    assert [(one.plan, one.tokens) for one in profile.measured] == [("1pc", 1), ("1pc", 4)]
    assert all(one.seconds > 0 for one in profile.measured)
    assert msgspec.structs.replace(LAYOUT, links=profile.links).links == profile.links


def test_all_plans_and_the_choice_take_turns_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MOST_LEARN_STEPS", 20)
    told = {"batches": (2, 7), "compared": (5,), "budget_s": 0.01, "timeout_s": 20.0, "passes": 2}
    told |= {"repeat": "twice"}
    orders = orders_of(LAYOUT, None, tmp_path, "127.0.0.1", **told)
    with ThreadPoolExecutor(len(orders)) as threads:
        times, *others = threads.map(take_part, orders)
    assert times is not None and others == [None] * 5
    plans = ["1pc", "2pc-direct", "2pc-relay", "2pc-sharded"]
    assert {(t.variant, t.tokens) for t in times.profiled} == {
        (plan, batch) for batch in (2, 7) for plan in plans
    }
    again = [f"{plan} again" for plan in plans]
    assert {(t.variant, t.tokens) for t in times.compared} == {
        (variant, 5) for variant in [*plans, *again, "auto"]
    }
    assert times.learned[5] in (10, 20)
    for one in (*times.profiled, *times.compared):
        plan = one.variant.removesuffix(" again")
        assert one.chosen == plan or (plan == "auto" and one.chosen in plans)
        assert len(one.seconds) >= 4 and 0 < one.typical_s <= max(one.seconds)
    assert link_profile(LAYOUT, times, {}).links == times.links


def test_exact_times_of_a_layout_give_back_its_links() -> None:
    truth = tcp_links()
    timed = [
        Timed(variant=plan, tokens=tokens, seconds=(seconds(truth, plan, tokens),), chosen=plan)
        for plan in distinct_plans(LAYOUT)
        for tokens in (2, 16, 128)
    ]
    fit = fit_timed(LAYOUT, timed)
    assert fit.median_error < 0.05
    assert seconds(fit.model, "2pc-direct", 64) == pytest.approx(
        seconds(truth, "2pc-direct", 64), rel=0.05
    )


def seconds(links: LinkModel, plan: str, tokens: int) -> float:
    exchange = egate_plan(plan, LAYOUT.topology, spread(tokens, 2))
    return exchange_seconds(links, priced_counts(exchange, LAYOUT.row_bytes))


def test_tokens_are_spread_evenly() -> None:
    assert spread(7, 3) == (3, 2, 2)
    assert spread(1, 2) == (1, 0)


def test_orders_that_cannot_be_met_are_refused() -> None:
    me = InstanceId(pool="attention", number=0)
    with pytest.raises(ConfigError, match="300 tokens are 150 each, room is 64"):
        ExchangeOrder(layout=LAYOUT, instance=me, meeting="", bind="", batches=(1, 300))
    with pytest.raises(ConfigError, match="at least two"):
        ExchangeOrder(layout=LAYOUT, instance=me, meeting="", bind="", batches=(4,))


def test_hosts_that_measure_together_need_a_folder_to_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_text("")
    assert main(["profile", "exchange", "--node", "0"]) == 1
    assert "--node and --meeting go together" in capsys.readouterr().err
    assert main(["profile", "exchange", "--node", "0", "--meeting", str(tmp_path)]) == 1
    assert "must be an empty folder" in capsys.readouterr().err


def test_a_damaged_profile_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    content = {
        "machine": {},
        "attention_nodes": [0],
        "expert_nodes": [1],
        "hidden_size": 8,
        "links": {"wire_s": 1.0},
        "median_error": 0.1,
        "p90_error": 0.2,
    }
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"links.json is not a valid LinkProfile.*not wire_s"):
        read_link_profile(path)
