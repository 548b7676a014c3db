"""Claims about loading request traces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.traces import load_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azure_rows_are_sorted_and_start_at_zero(tmp_path: Path) -> None:
    rows = "2023-11-16 18:17:04.0319600,3180,8\n2023-11-16 18:17:03.9799600,4808,10\n\n"
    workload = load_trace(written(tmp_path, AZURE + rows))
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 0.052])
    assert workload.prompt_tokens.tolist() == [4808, 3180]
    assert workload.output_tokens.tolist() == [10, 8]


def test_azure_times_may_have_a_zone_and_cross_midnight(tmp_path: Path) -> None:
    rows = "2024-05-10 23:59:59.5+00:00,1,1\n2024-05-11 00:00:00.250000+00:00,2,2\n"
    workload = load_trace(written(tmp_path, AZURE + rows))
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 0.75])


def test_burstgpt_failures_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n"
    rows += "118.5,GPT-4,417,276,693,Conversation log\n"
    workload = load_trace(written(tmp_path, BURSTGPT + rows))
    assert workload.num_skipped == 1
    assert workload.arrival_s.tolist() == [0.0, 113.5]
    assert workload.output_tokens.tolist() == [18, 276]


def test_mooncake_keeps_prefix_blocks_in_order_of_arrival(tmp_path: Path) -> None:
    late = {"timestamp": 3000, "input_length": 1000, "output_length": 5, "hash_ids": [0, 2]}
    soon = {"timestamp": 1000, "input_length": 600, "output_length": 7, "hash_ids": [0, 1, 4]}
    workload = load_trace(written(tmp_path, f"{json.dumps(late)}\n{json.dumps(soon)}\n"))
    assert workload.arrival_s.tolist() == [0.0, 2.0]
    assert workload.prefix is not None
    assert workload.prefix.of(0).tolist() == [0, 1, 4]
    assert workload.prefix.of(1).tolist() == [0, 2]


def test_windows_and_speed_change_arrivals_only(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1000 * i, "input_length": 10 + i, "output_length": 5, "hash_ids": [i]}
        for i in range(10)
    ]
    workload = load_trace(written(tmp_path, "\n".join(map(json.dumps, lines))))
    part = workload.window(2.0, 3.0).faster(2.0)
    assert part.arrival_s.tolist() == [0.0, 0.5, 1.0]
    assert part.prompt_tokens.tolist() == [12, 13, 14]
    assert part.prefix is not None and part.prefix.of(1).tolist() == [3]
    assert workload.rate(5.0).tolist() == [1.0, 1.0]
    with pytest.raises(ConfigError, match="no request arrives"):
        workload.window(100.0, 1.0)
    assert not np.shares_memory(workload.arrival_s, part.arrival_s)
    with pytest.raises(ValueError, match="read-only"):
        workload.arrival_s[0] = 1.0


GOOD = "2023-11-16 18:17:03,1,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE + GOOD + "yesterday,1,1\n", "line 3, column TIMESTAMP: expected a time"),
        (AZURE + GOOD * 5 + GOOD.replace(",1,1", ",-4,1"), "line 7, column ContextTokens.*'-4'"),
        (AZURE + GOOD + "\n2023-11-16 18:17:03,1\n", "line 4: column GeneratedTokens is missing"),
        (AZURE + GOOD.replace(",1,1", ",1,2.5"), "column GeneratedTokens: expected a whole number"),
        (AZURE, "header and no rows"),
        (AZURE + GOOD.replace(",1,1", ",1,0"), "no requests"),
        (BURSTGPT + "nan,m,1,1,2,x\n", "line 2, column Timestamp: expected seconds"),
        (BURSTGPT + f"1,m,{10**30},1,2,x\n", "column Request tokens"),
        ("a,b,c\n1,2,3\n", "not a known trace: 'a,b,c'"),
        ("", "not a known trace"),
        ("\x00\xff" * 100, "not a known trace"),
        ('{"timestamp": 1}\n', "line 1: .*input_length"),
        ('{"timestamp": 1, "input_length": 2, "output_length": "x"}', r"line 1: .*\.output_length"),
        ('{"timestamp": 0, "input_length": 2, "output_length": 1}\n{oops', "line 2"),
    ],
)
def test_malformed_traces_say_where_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_trace(path)
    assert str(path) in str(caught.value) or "trace: the workload" in str(caught.value)


def test_a_forced_format_that_does_not_fit_names_the_columns(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE + GOOD)
    with pytest.raises(ConfigError, match="Request tokens, Response tokens is missing"):
        load_trace(path, "burstgpt")
    with pytest.raises(ConfigError, match="line 1"):
        load_trace(path, "mooncake")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.csv: No such file"):
        load_trace(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_trace(tmp_path)
