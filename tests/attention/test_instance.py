"""Claims about an attention instance over the loopback exchange, with tiny random models.

Which tokens are right is decided by transformers; what shares a batch, a step or a cache with a
request must not change them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attention.pools import EXPERT_IDS, RULE, Attention, Weights, reports_of, tokens_of
from tests.checkpoints import make_checkpoint
from tests.model.runner import reference_logits

from janus_moe.attention.loop import serve
from janus_moe.messages import FromWorker, StepDone, Stop, ToWorker

PROMPTS = {
    "long": [(7 * i) % 250 for i in range(23)],
    "short": [11, 45, 3],
    "one": [200],
    "mid": [(31 * i + 5) % 250 for i in range(12)],
}


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The second has a dense layer, shared experts and latent attention."""
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    return Weights(make_checkpoint(folder, request.param, seed=2))


@pytest.fixture(scope="module")
def expected(weights: Weights) -> dict[str, list[int]]:
    """Tokens of all prompts where each is computed alone."""
    tokens: dict[str, list[int]] = {}
    for name, prompt in PROMPTS.items():
        attention = Attention(weights)
        attention.add(name, prompt)
        tokens |= attention.run()
    return tokens


def add_all(attention: Attention) -> Attention:
    for name, prompt in PROMPTS.items():
        attention.add(name, prompt)
    return attention


def test_tokens_are_those_of_transformers(weights: Weights, expected: dict[str, list[int]]) -> None:
    for name, prompt in PROMPTS.items():
        logits = reference_logits(weights.folder, prompt + expected[name], torch.float32)
        best = logits[len(prompt) - 1 : -1].argmax(dim=-1)
        assert best.tolist() == expected[name]


@pytest.mark.parametrize("max_num_batched_tokens", [64, 7, 4])
def test_a_prompt_in_chunks_and_a_batch_give_the_same_tokens(
    weights: Weights, expected: dict[str, list[int]], max_num_batched_tokens: int
) -> None:
    attention = add_all(Attention(weights, max_num_batched_tokens=max_num_batched_tokens))
    assert attention.run() == expected
    assert len(reports_of(attention.steps, "long")) == 8
    assert attention.blocks.usage == 0.0 and not attention.instance.has_work


def test_preempted_requests_produce_the_same_tokens(
    weights: Weights, expected: dict[str, list[int]]
) -> None:
    attention = add_all(Attention(weights, num_blocks=11))
    assert attention.run() == expected
    assert attention.steps[-1].num_preemptions > 0
    assert attention.blocks.usage == 0.0


def test_a_request_resumed_elsewhere_goes_on_with_the_same_tokens(weights: Weights) -> None:
    options = {"temperature": 0.8, "seed": 11, "frequency_penalty": 0.5, "max_tokens": 10}
    whole = Attention(weights)
    whole.add("r", PROMPTS["mid"], **options)
    tokens = whole.run()["r"]
    for produced in (1, 4, 9):
        other = Attention(weights)
        other.add("r", PROMPTS["mid"] + tokens[:produced], position=produced, **options)
        assert other.run()["r"] == tokens[produced:]
        assert reports_of(other.steps, "r")[-1].finish_reason == "length"


def test_an_abort_frees_blocks_and_leaves_the_others_alone(
    weights: Weights, expected: dict[str, list[int]]
) -> None:
    attention = add_all(Attention(weights, max_num_seqs=2))
    attention.step()
    attention.step()
    used = attention.blocks.usage
    attention.instance.abort("long", 1)  # running
    attention.instance.abort("mid", 1)  # waiting
    attention.instance.abort("never added", 1)
    assert 0.0 < attention.blocks.usage < used
    tokens = attention.run()
    assert {name: tokens[name] for name in ("short", "one")} == {
        name: expected[name] for name in ("short", "one")
    }
    assert "mid" not in tokens and len(tokens["long"]) < 8
    assert attention.blocks.usage == 0.0


def test_a_cached_prefix_is_not_computed_again(
    weights: Weights, expected: dict[str, list[int]]
) -> None:
    attention = Attention(weights, prefix_caching=True)
    attention.add("first", PROMPTS["long"])
    attention.run()
    attention.add("second", PROMPTS["long"])
    attention.add("other", PROMPTS["short"])
    tokens = attention.run()
    assert tokens["first"] == tokens["second"] == expected["long"]
    assert tokens["other"] == expected["short"]
    first, *later = reports_of(attention.steps, "second")
    assert first.num_cached_tokens == 20, "five of six blocks; the last token is always computed"
    assert all(report.num_cached_tokens == 0 for report in later)


@pytest.mark.parametrize(
    "options", [{}, {"max_num_batched_tokens": 5}, {"max_num_batched_tokens": 5, "num_blocks": 10}]
)
def test_prompt_logprobs_come_once_and_are_right(weights: Weights, options: dict[str, Any]) -> None:
    attention = Attention(weights, prefix_caching=True, **options)
    for name in ("mid", "long"):
        attention.add(name, PROMPTS[name], prompt_logprobs=2)
    attention.run()
    preempted = attention.steps[-1].num_preemptions  # amid its prompt, which is then done again
    assert (preempted > 0) == ("num_blocks" in options)
    for name in ("mid", "long"):
        prompt = PROMPTS[name]
        first, *later = reports_of(attention.steps, name)
        assert first.prompt_logprobs is not None and first.prompt_logprobs[0] is None
        assert all(report.prompt_logprobs is None for report in later)
        logits = reference_logits(weights.folder, prompt, torch.float32)
        reference = torch.log_softmax(logits, dim=-1)[:-1].gather(
            1, torch.tensor(prompt[1:])[:, None]
        )
        entries = [one for one in first.prompt_logprobs if one is not None]
        assert [one.token_id for one in entries] == prompt[1:]
        assert all(len(one.top) == 2 for one in entries)
        assert [one.logprob for one in entries] == pytest.approx(reference[:, 0].tolist(), abs=1e-3)


def test_scoring_alone_produces_nothing(weights: Weights) -> None:
    attention = Attention(weights)
    attention.add("r", PROMPTS["mid"], max_tokens=0, prompt_logprobs=0)
    attention.add("other", PROMPTS["short"])
    attention.run()
    [report] = reports_of(attention.steps, "r")
    assert report.token_ids == () and report.finish_reason == "length"
    assert (report.admission, report.position) == (1, 0)
    assert report.prompt_logprobs is not None
    assert len(report.prompt_logprobs) == len(PROMPTS["mid"])


@pytest.mark.parametrize("max_num_batched_tokens", [64, 7])
def test_micro_batches_give_the_tokens_of_whole_steps(
    weights: Weights, expected: dict[str, list[int]], max_num_batched_tokens: int
) -> None:
    attention = Attention(
        weights,
        num_ports=2,
        micro_batch_threshold=2,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    assert add_all(attention).run() == expected
    layers = len(weights.spec.moe_layer_ids)
    exchanges = {step.activity.layers for step in attention.steps if step.activity is not None}
    assert exchanges >= {2 * layers}, "two exchanges a layer"


def test_a_step_reports_load_and_what_the_experts_did(weights: Weights) -> None:
    attention = add_all(Attention(weights, max_num_seqs=3))
    done = attention.step()
    assert (done.num_running, done.num_waiting) == (3, 1)
    assert done.kv_usage == attention.blocks.usage > 0
    assert done.step_seconds > done.combine_seconds >= 0
    activity = done.activity
    assert activity is not None and activity.layers == len(weights.spec.moe_layer_ids)
    assert set(activity.activated) == set(EXPERT_IDS)
    assert activity.max_activated >= max(activity.activated.values())


class Threads:
    """Two attention instances of one exchange, each served by a thread as in a worker."""

    def __init__(self, weights: Weights) -> None:
        exchange = weights.exchange(num_attention=2)
        self.members = [
            Attention(weights, ports=[exchange.attention_port(rank, RULE)], number=rank)
            for rank in range(2)
        ]
        self.inboxes: list[queue.SimpleQueue[ToWorker]] = [queue.SimpleQueue() for _ in range(2)]
        self.reports: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self.threads = [
            threading.Thread(target=serve, args=(member.instance, inbox, self.reports.put))
            for member, inbox in zip(self.members, self.inboxes, strict=True)
        ]
        for thread in self.threads:
            thread.start()

    def tell(self, rank: int, message: ToWorker) -> None:
        self.inboxes[rank].put(message)
        self.members[rank].instance.wake()

    def stop(self) -> None:
        for rank in range(2):
            self.tell(rank, Stop())
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def threads(weights: Weights) -> Iterator[Threads]:
    running = Threads(weights)
    yield running
    running.stop()


def test_an_instance_without_work_takes_part_in_the_steps_of_its_peer(
    threads: Threads, expected: dict[str, list[int]]
) -> None:
    steps: list[StepDone] = []
    for rank, names in ((0, ["long"]), (1, ["short", "one"]), (0, ["mid"])):  # then both at once
        for name in names:
            threads.tell(rank, threads.members[rank].request(name, PROMPTS[name]))
        while any(len(tokens_of(steps).get(name, [])) < 8 for name in names):
            report = threads.reports.get(timeout=20)
            assert isinstance(report, StepDone)
            assert report.instance == threads.members[rank].instance.id
            steps.append(report)
    assert tokens_of(steps) == expected


def test_instances_that_share_exchanges_give_the_same_tokens(
    threads: Threads, expected: dict[str, list[int]]
) -> None:
    for place, (name, prompt) in enumerate(PROMPTS.items()):
        threads.tell(place % 2, threads.members[place % 2].request(name, prompt))
    steps: list[StepDone] = []
    while sum(map(len, tokens_of(steps).values())) < 8 * len(PROMPTS):
        report = threads.reports.get(timeout=20)
        assert isinstance(report, StepDone)
        steps.append(report)
    assert tokens_of(steps) == expected
