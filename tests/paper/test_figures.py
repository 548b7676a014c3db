"""Figures of the evaluation: equal seeds give equal bytes, and the report says what they found."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from paper.catalog import FIGURES
from paper.encoding import content, encoded
from paper.exchange import exchange, filled
from paper.figure import rounded
from paper.planning import Question, ask, described
from paper.report import Entry, markdown, page
from paper.settings import idle_surplus_oracle, oracle, undivided_oracle

from janus_moe.planner.latency import LinkModel, device_profile, find_model
from janus_moe.planner.search.paper import TOKEN_S
from paper import fig03_activated, fig04_week


@pytest.mark.parametrize("number", ["3", "4"])
def test_equal_seeds_give_equal_bytes(number: str) -> None:
    assert encoded(content(number, 1)) == encoded(content(number, 1))


@pytest.mark.parametrize("value", [{}, [], {"a": [], "b": {"c": [1, {"d": None}]}}, [[1], ["x"]]])
def test_encoded_data_reads_back(value: Any) -> None:
    assert json.loads(encoded(value)) == value


def test_another_seed_gives_another_week() -> None:
    one, other = fig04_week.data(0), fig04_week.data(1)
    assert one["mean_of_window"] != other["mean_of_window"]
    assert one["peak"] == pytest.approx(other["peak"])


def test_every_figure_names_its_basis_and_its_number() -> None:
    for number, module in FIGURES.items():
        assert number == module.NUMBER
        assert module.TITLE and any(
            word in module.BASIS.lower() for word in ("measured", "fitted", "modelled", "synthetic")
        )


def test_floats_are_rounded_wherever_they_are() -> None:
    assert rounded({"a": [1 / 3, {"b": (2 / 3,)}], 1: 7}) == {
        "a": [0.333333, {"b": [0.666667]}],
        "1": 7,
    }


def test_report_holds_every_comparison_and_escapes_html() -> None:
    data = fig03_activated.data()
    entry = Entry(fig03_activated, data, "figures/fig3.png", "fig3.json")
    text = markdown("# Title\n\nx < y", [entry])
    made = page("# Title\n\nx < y", [entry])
    for row in entry.comparisons:
        assert row.ours in text and row.what in made
    assert "x &lt; y" in made and "<script" not in made
    parser = _Balance()
    parser.feed(made)
    assert parser.open == []


def test_exchange_on_two_nodes_takes_what_its_messages_take() -> None:
    """8 attention instances on one node, 1 expert instance on the next, one phase: the expert's
    link receives all 8 messages, and sends 8 back."""
    device, model = device_profile("h100_sxm"), find_model("deepseek-v2")
    links = LinkModel.of(device, device)
    found = exchange("1pc", filled(8, 1), 64, model, links)
    row, header = 2 * model.hidden_size, 64
    sent = 8 * links.inter_message_s + (64 * row + 8 * header) * links.inter_s_per_byte
    assert found.dispatch_s == pytest.approx(links.inter_latency_s + sent)
    assert found.far_messages == 16
    assert found.far_bytes > 64 * row * 3  # sums come back in float32


def test_gating_at_the_attention_side_sends_fewer_bytes() -> None:
    device, model = device_profile("h100_sxm"), find_model("deepseek-v2")
    links = LinkModel.of(device, device)
    replicas = np.random.default_rng(0).integers(0, 8, (64, 2)).astype(np.int64)
    routed = exchange("1pc", filled(8, 8), 64, model, links, replicas)
    complete = exchange("1pc", filled(8, 8), 64, model, links)
    assert routed.far_bytes < complete.far_bytes


def test_busy_surplus_takes_as_long_as_idle_surplus() -> None:
    for model in ("deepseek-v2", "qwen3-235b-a22b"):
        busy, idle = oracle("paper", model), idle_surplus_oracle(model)
        steps = [one.step_s(one.pools_load(256, 144, 2, 8, 15)) for one in (busy, idle)]
        assert float(steps[0]) == pytest.approx(float(steps[1]))
        assert busy.attention_layer_s(64, 144) > idle.attention_layer_s(64, 144)


def test_an_undivided_surplus_counts_only_where_heads_are_shared() -> None:
    divided, undivided = oracle("paper"), undivided_oracle()
    assert undivided.attention_layer_s(64, 144) == divided.attention_layer_s(64, 144)
    more = undivided.attention_layer_s(64, 144, 8) - divided.attention_layer_s(64, 144, 8)
    assert float(more) == pytest.approx(TOKEN_S * 64 * 7 / 8)


def test_an_objective_that_nothing_meets_is_described_with_its_reason() -> None:
    found = described(ask("janus", Question("fitted", 512, 0.001)))
    assert found["shape"] is None and found["tpg"] == 0
    assert "1.0 ms" in found["reason"]


class _Balance(HTMLParser):
    """Tags that are open; void ones never are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
