"""Claims about what `--device cuda` asks of tensors, on a GPU that is pretended on the CPU.

All instances of a service in one thread: the tokens are the CPU's, and beside the experts' products
(whose fallback counts tokens on the host) a step waits for the device twice, whatever its layers.
Nothing here says anything about a GPU's arithmetic or speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.conftest import Model
from tests.pretended_gpu import GpuTensor, PretendedGpu, pretend, pretended_gpu
from torch import Tensor

from janus_moe.cluster.deployment_plan import Host, plan_deployment
from janus_moe.cluster.host_facts import HostFacts
from janus_moe.cluster.hosts.shares import whole
from janus_moe.cluster.worker.hosted_instance import HostedInstance
from janus_moe.cluster.worker.worker_instances import (
    build_instances,
    wait_rule,
)
from janus_moe.cluster.worker_layout import setup_message, worker_layouts
from janus_moe.config import EngineConfig
from janus_moe.experts import routing_observer
from janus_moe.kernels.activation_schedule import (
    DevicePolicy,
    PolicyActivationSchedule,
    ReplicaTables,
    ScheduleTensors,
    dispatch,
)
from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.messages import (
    AddRequest,
    EpochFailed,
    EpochPrepared,
    ExpertLoad,
    FromWorker,
    PrepareEpoch,
    SamplingParams,
    StepDone,
    Stop,
    UseEpoch,
)
from janus_moe.model import expert_block
from janus_moe.spec import InstanceId
from janus_moe.transport.loopback import LoopbackExchange

ATTENTION = InstanceId(pool="attention", number=0)

Requests = Sequence[tuple[tuple[int, ...], dict[str, Any]]]

REQUESTS: Requests = (
    ((1, 2, 3), {"temperature": 0.0, "logprobs": 2}),
    ((200, 7) * 20, {"temperature": 0.0, "prompt_logprobs": 1, "repetition_penalty": 1.2}),
    ((5,), {"temperature": 0.8, "top_p": 0.9, "seed": 3, "logit_bias": {9: 4.0}, "min_tokens": 4}),
    ((8, 9), {"temperature": 1.0, "min_p": 0.1, "seed": 4, "presence_penalty": 0.5}),
)
TOKENS, MOVE_AT = 8, 3
LAYERS, EXPERTS = 3, 3


class PretendedKernel:
    """Instead of the Triton kernel: the policy package, for tensors on the pretended GPU."""

    def __init__(self, tables: ReplicaTables, policy: DevicePolicy, device: object) -> None:
        self._schedule = PolicyActivationSchedule(tables, policy)

    def warm_up(self) -> None:
        pass

    def schedule(self, expert_ids: Tensor, instance_index: int) -> ScheduleTensors:
        assert isinstance(expert_ids, GpuTensor)
        answer = self._schedule.schedule(expert_ids.as_subclass(Tensor), instance_index)
        return ScheduleTensors(*map(pretend, answer))


class OneThread:
    """One attention instance, three expert instances; experts move once, between two steps.

    waits: on the pretended GPU, so far, after each step.
    """

    def __init__(
        self,
        folder: Path,
        requests: Requests,
        gpu: PretendedGpu | None = None,
        **settings: Any,
    ) -> None:
        config = EngineConfig(
            model=str(folder),
            dtype="float32",
            transport="loopback",
            expert_instances=EXPERTS,
            redundant_experts=1,
            rebalance_spare_slots=8,
            max_model_len=64,
            threads=1,
            **settings,
        )
        self.plan = plan_deployment(config, [Host(whole(config.shape), HostFacts(1, 2**33))])
        self.loads: list[ExpertLoad] = []
        self.steps: list[StepDone] = []
        self.waits: list[int] = []
        self._requests = requests
        self._gpu = gpu
        self._done = 0
        self._prepared = 0
        [layout] = worker_layouts(self.plan)
        exchange = LoopbackExchange(self.plan.membership)
        self._attention: HostedInstance
        setup = setup_message(self.plan, layout)
        self._attention, *self._experts = members = build_instances(setup, self._take)
        self._connections = {i.id: i.connect(setup, [exchange], wait_rule(setup)) for i in members}

    def run(self) -> dict[str, tuple[list[int], list[Any]]]:
        for number, (prompt, sampling) in enumerate(self._requests):
            params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, **sampling)
            request = AddRequest(
                instance=ATTENTION,
                request_id=str(number),
                admission=1,
                prompt_ids=prompt,
                sampling=params,
                eos_token_ids=(256,),
            )
            self._attention.post(request)
        self._serve(self._attention)
        produced: dict[str, tuple[list[int], list[Any]]] = {}
        for step in self.steps:
            for new in step.outputs:
                ids, scores = produced.setdefault(new.request_id, ([], []))
                ids += new.token_ids
                scores += [*(new.logprobs or ()), *(new.prompt_logprobs or ())]
        return produced

    def _serve(self, instance: HostedInstance) -> None:
        """The work of its thread in this one, until a Stop message."""
        instance.begin(self._connections[instance.id], lambda: None)
        instance.finish()
        instance.serve(_raise)

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, StepDone):
            self.steps.append(message)
            self.waits.append(0 if self._gpu is None else self._gpu.waits)
            self._done += sum(new.finish_reason is not None for new in message.outputs)
            if self._done == len(self._requests):
                self._attention.post(Stop())
            elif len(self.steps) == MOVE_AT:
                self._move()
        elif isinstance(message, ExpertLoad):
            self.loads.append(message)
        elif isinstance(message, EpochPrepared | EpochFailed):
            assert isinstance(message, EpochPrepared), message
            self._prepared += 1
            next(one for one in self._experts if one.id == message.instance).post(Stop())

    def _move(self) -> None:
        """Every expert goes to the next instance."""
        turned = tuple((layer[-1], *layer[:-1]) for layer in self.plan.placement.slots)
        for expert in self._experts:
            expert.post(PrepareEpoch(instance=expert.id, epoch=1, placement=turned))
            self._serve(expert)
        assert self._prepared == len(self._experts)
        self._attention.post(UseEpoch(instance=ATTENTION, epoch=1))


@pytest.fixture(autouse=True)
def every_step_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_observer, "REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(dispatch, "ActivationScheduleKernel", PretendedKernel)


def count_no_waits_of_the_experts(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def uncounted(*tensors: Tensor, sums: torch.dtype) -> Tensor:
        before = gpu.waits
        result = grouped_experts(*tensors, sums=sums)
        gpu.waits = before
        return result

    monkeypatch.setattr(expert_block, "grouped_experts", uncounted)


def _raise(error: Exception, generation: int) -> None:
    raise error


def flat(scores: list[Any]) -> list[float]:
    return [value for s in scores if s for value in (s.logprob, *(rival[1] for rival in s.top))]


def test_a_gpu_gives_the_tokens_and_reports_of_the_cpu(model: Model) -> None:
    on_cpu = OneThread(model.folder, REQUESTS, device="cpu")
    expected = on_cpu.run()
    with pretended_gpu():
        on_gpu = OneThread(model.folder, REQUESTS, device="cuda")
        produced = on_gpu.run()
    assert produced.keys() == expected.keys()
    for name, (ids, scores) in expected.items():
        assert produced[name][0] == ids
        assert flat(produced[name][1]) == pytest.approx(flat(scores), abs=1e-4)
    assert [step.epoch for step in on_gpu.steps] == [step.epoch for step in on_cpu.steps]
    assert [step.activity for step in on_gpu.steps] == [step.activity for step in on_cpu.steps]
    assert on_gpu.steps[-1].epoch == 1
    assert on_gpu.loads[1:] == on_cpu.loads[:-1], "the same statistics, one step later"


@pytest.mark.parametrize(("policy", "waits"), [("exact", 1 + 1), ("metro", 1 + LAYERS * EXPERTS)])
def test_a_decode_step_waits_for_its_tokens_and_for_the_notes(
    qwen3: Model, policy: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metro has no kernel: ids go to the host and slots come back, which the plan says."""
    greedy = [(prompt, {"temperature": 0.0}) for prompt, _ in REQUESTS]
    with pretended_gpu() as gpu:
        count_no_waits_of_the_experts(gpu, monkeypatch)
        run = OneThread(qwen3.folder, greedy, gpu, device="cuda", activation_policy=policy)
        run.run()
    assert {after - before for before, after in pairwise(run.waits)} == {waits}
    said = [choice for choice in run.plan.choices if "waits for the GPU in every layer" in choice]
    assert len(said) == (policy == "metro")
