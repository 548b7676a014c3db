"""Tables of measurements, what an oracle makes of them, and the calibration of a live service."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle, find_model, read_profile
from janus_moe.planner.latency.calibration import LiveCell, calibrate, non_negative_least_squares
from janus_moe.planner.latency.coefficients import LinkLaw
from janus_moe.planner.latency.duration_grid import DurationGrid
from janus_moe.planner.latency.links import ExchangeCounts
from janus_moe.planner.latency.profile import (
    AttentionTables,
    ExpertTables,
    HostLaw,
    Profile,
    write_profile,
)

US = 1e-6


def profile() -> Profile:
    """A machine of round numbers: 2 us a token of attention, 100 us an expert."""
    tables = AttentionTables(
        layer=DurationGrid.measured(
            [(1, 4, 16), (16, 256)], lambda n, c: (10 + 2 * n + n * c / 256) * US
        ),
        head=DurationGrid.measured([(1, 16)], lambda n: (50 + n) * US),
    )
    experts = ExpertTables(
        gate=DurationGrid.measured([(1, 16)], lambda n: (5 + n) * US),
        experts=DurationGrid.measured([(1, 8), (1, 4)], lambda a, r: 100 * a * (1 + 0.1 * r) * US),
    )
    return Profile(
        machine={"cores": "2"},
        device="cpu",
        model=find_model("bundled"),
        attention={1: tables, 2: tables},
        expert={1: experts, 2: experts},
        hosts={"shm": HostLaw(step_s=100 * US, token_s=3 * US)},
        exchanges={"shm": LinkLaw(latency_s=20 * US, message_s=US, s_per_byte=0.0)},
    )


def test_a_step_is_the_sum_of_its_measured_parts() -> None:
    oracle = Oracle.from_profile(profile(), 1, 2)
    step = oracle.step(oracle.pools_load(4, 256, 1, 2, 5, busiest_tokens=10, plan="1pc"))
    attention, experts = 10 + 8 + 4, (5 + 4) + 100 * 5 * 1.2
    exchange = 2 * (20 + 2)  # a hop and a message to either expert instance, both ways
    expected = 6 * (attention + experts + exchange) + 54 + (100 + 4 * 3)
    assert step.tpot.seconds == pytest.approx(expected * US)
    assert step.tpot.confidence == "interpolated"


def test_more_instances_than_were_measured_take_turns_on_the_cores() -> None:
    two, three = (Oracle.from_profile(profile(), 1, count) for count in (2, 3))
    assert three.moe_layer(4, 8).seconds == pytest.approx(1.5 * two.moe_layer(4, 8).seconds)
    assert three.moe_layer(4, 8).confidence == "roofline"


def test_a_transport_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="no transport 'dist', only shm"):
        Oracle.from_profile(profile(), 1, 1, "dist")


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", profile())
    assert read_profile(tmp_path / "p.json") == profile()


def test_a_damaged_profile_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"device": "cpu"}')
    with pytest.raises(ConfigError, match=r"p.json is not a valid Profile: .*machine"):
        read_profile(tmp_path / "p.json")


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
    st.floats(0, 40),
    st.floats(0, 40),
    st.floats(1, 3),
)
def test_grids_never_say_that_more_takes_less(
    noise: list[float], x: float, y: float, more: float
) -> None:
    values = iter(noise)
    grid = DurationGrid.measured([(1, 4, 16), (2, 8)], lambda *_: next(values))
    within = (min(x, 16.0), min(y, 8.0))
    base = float(grid.seconds(*within))
    assert float(grid.seconds(within[0] * more, within[1])) >= base - 1e-12
    assert float(grid.seconds(within[0], within[1] * more)) >= base - 1e-12


def test_one_slow_measurement_does_not_lift_all_larger_sizes() -> None:
    values = iter([1.0, 9.0, 3.0, 4.0, 5.0])
    grid = DurationGrid.measured([(1, 2, 3, 4, 5)], lambda _: next(values))
    assert grid.values == (1.0, 6.0, 6.0, 6.5, 7.0)
    values = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    assert DurationGrid.measured([(1, 2, 3, 4, 5)], lambda _: next(values)).values == (
        1,
        2,
        3,
        4,
        5,
    )


def test_grids_give_their_points_and_lines_between_them() -> None:
    grid = DurationGrid(axes=((1, 3), (10, 20)), values=(1, 2, 5, 6))
    assert grid.seconds(np.array([1, 3, 2, 5]), np.array([10, 20, 15, 10])).tolist() == [
        1,
        6,
        3.5,
        9,
    ]
    assert [grid.confidence(*at) for at in ((1, 20), (2, 20), (4, 20))] == [
        "measured", "interpolated", "roofline",
    ]  # fmt: skip


def test_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="must ascend"):
        DurationGrid(axes=((2, 1),), values=(1, 2))
    with pytest.raises(ConfigError, match="3 values"):
        DurationGrid(axes=((1, 2),), values=(1, 2, 3))


def test_calibration_finds_host_and_exchange_of_an_exact_service() -> None:
    def cell(transport: str, batch: int, messages: int) -> LiveCell:
        counts = ExchangeCounts(intra_hops=1, intra_messages=messages, intra_bytes=1000 * batch)
        away = 0.0 if transport == "loopback" else 2 * 6 * (20 + messages * 2 + batch * 0.5) * US
        step = 100 if transport == "loopback" else 300
        return LiveCell(
            transport=transport,
            shape=f"1A{messages}E",
            batch=batch,
            measured_s=(step + 4 * batch + 1000) * US + away,
            explained_s=1000 * US,
            counts=(counts, counts),
            num_exchanges=6,
        )

    cells = [cell("loopback", b, 1) for b in (2, 32)]
    cells += [cell("shm", b, m) for m in (1, 2, 3) for b in (2, 16, 64)]
    hosts, links = calibrate(cells)
    alone = hosts["loopback"]
    assert (alone.step_s, alone.token_s) == pytest.approx((100 * US, 4 * US))
    assert links["loopback"].latency_s == 0
    host, shm = hosts["shm"], links["shm"]
    assert shm.message_s == pytest.approx(2 * US)
    # A constant, and what grows with the batch, are the host's or the exchange's: the sum is known.
    assert host.step_s + 12 * shm.latency_s == pytest.approx((300 + 12 * 20) * US)
    assert host.token_s + 12_000 * shm.s_per_byte == pytest.approx((4 + 12 * 0.5) * US)


def test_calibration_finds_how_much_longer_operations_take_in_a_service() -> None:
    counts = ExchangeCounts(intra_hops=1, intra_messages=1, intra_bytes=0)
    cells = [
        LiveCell(
            transport="loopback",
            shape="1A1E",
            batch=batch,
            measured_s=(500 + 1.4 * explained) * US,
            explained_s=explained * US,
            counts=(counts, counts),
            num_exchanges=6,
        )
        for batch, explained in ((2, 900), (8, 2500), (32, 4000))
    ]
    host = calibrate(cells)[0]["loopback"]
    assert (host.step_s, host.token_s, host.slower) == pytest.approx((500 * US, 0.0, 1.4), abs=1e-9)


def test_operations_of_a_service_take_longer_than_the_tables_say() -> None:
    made = profile()
    slow = msgspec.structs.replace(made, hosts={"shm": HostLaw(100 * US, 3 * US, slower=1.5)})
    table, live = (Oracle.from_profile(p, 1, 2) for p in (made, slow))
    assert live.moe_layer(4, 8).seconds == pytest.approx(1.5 * table.moe_layer(4, 8).seconds)
    assert live.moe_layer(4, 8).confidence == "interpolated"
    assert live.lm_head(4).seconds == pytest.approx(1.5 * table.lm_head(4).seconds)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing was measured"):
        calibrate([])


def test_least_squares_leaves_out_what_would_be_negative() -> None:
    matrix = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert non_negative_least_squares(matrix, np.array([3.0, 2.0, 1.0])).tolist() == pytest.approx(
        [2.0, 0.0]
    )
    assert non_negative_least_squares(matrix, np.array([1.0, 3.0, 5.0])).tolist() == pytest.approx(
        [1.0, 2.0]
    )
