"""Train the bundled model on the sources of Python's standard library, on a CPU, by the clock.

    python -m examples.train_bundled_model --minutes 75 --work-folder bundled_model_run

The learning rate warms up, then falls linearly to zero at the end of `--minutes`, however fast the
machine is; `--resume` continues from the last checkpoint with the time already used counted.
The result is `export` in the work folder, in the Hugging Face Qwen3-MoE layout. Knows nothing of
the evaluation and its tables.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from examples.bundled_model.corpus import (
    WindowSampler,
    encode_files,
    end_of_text_id,
    read_standard_library,
    save_tokenizer,
    split_corpus,
    train_tokenizer,
)
from examples.bundled_model.export import export_network
from examples.bundled_model.network import Network, NetworkConfig
from examples.bundled_model.optimizer import Muon
from examples.bundled_model.parallel import ParallelStep, SharedState
from torch.multiprocessing.spawn import spawn

Files = list[npt.NDArray[np.int64]]
LOG_INTERVAL_S = 20.0
MAX_GRAD_NORM = 1.0
PROCESS_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Keep freed memory, in large pages: getting it back costs page faults at every step.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Products are compiled per shape, and the experts' shares of a batch have many.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock budget")
    parser.add_argument("--work-folder", type=Path, default=Path("bundled_model_run"))
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="per step, all processes")
    parser.add_argument(
        "--lengths",
        type=json.loads,
        default=[[0.6, 256], [0.85, 512], [1.0, 1024]],
        help="JSON pairs: until this share of the time, sequences of this many tokens",
    )
    parser.add_argument("--matrix-lr", type=float, default=0.02, help="Muon")
    parser.add_argument("--embedding-lr", type=float, default=3e-3, help="AdamW: embedding, norms")
    parser.add_argument("--router-lr", type=float, default=1e-3, help="AdamW: router")
    parser.add_argument("--balance-loss", type=float, default=1e-2, help="its weight in the loss")
    parser.add_argument("--warm-up", type=float, default=0.02, help="share of the time")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded, one per core")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def learning_rate_scale(done_share: float, warm_up: float) -> float:
    """Linear up over `warm_up`, then linear down to zero at 1."""
    if done_share < warm_up:
        return max(done_share / warm_up, 0.02)
    return max(0.0, (1.0 - done_share) / (1.0 - warm_up))


def owned_parameter_names(network: Network, process_id: int, num_processes: int) -> set[str]:
    """Layers go round the processes; process 0 also has what lies outside the layers."""
    owned: set[str] = set()
    for name, _ in network.named_parameters():
        parts = name.split(".")
        owner = int(parts[1]) % num_processes if parts[0] == "layers" else 0
        if owner == process_id:
            owned.add(name)
    return owned


def make_optimizers(
    network: Network, owned: set[str], arguments: argparse.Namespace
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers; AdamW for embedding and norms, and for the routers."""
    matrices, routers, rest = [], [], []
    for name, parameter in network.named_parameters():
        if name not in owned:
            continue
        if name.endswith("router"):
            routers.append(parameter)
        elif name.startswith("layers") and parameter.dim() >= 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [
        {"params": rest, "lr": arguments.embedding_lr},
        {"params": routers, "lr": arguments.router_lr},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, lr=arguments.matrix_lr), adam]


class HeldOutProbe:
    """A quick held-out score on evenly spaced windows; the card's is the evaluation's."""

    def __init__(self, files: Files, num_bytes: int, num_windows: int = 32) -> None:
        self._scale = sum(len(file) - 1 for file in files) / num_bytes / math.log(2)
        stream = np.concatenate(files)
        starts = np.linspace(0, len(stream) - 514, num_windows).astype(np.int64)
        self._windows = torch.from_numpy(stream[starts[:, None] + np.arange(513)[None, :]])

    @torch.no_grad()
    def bits_per_byte(self, network: Network) -> float:
        """Nats per token on the windows, scaled by the held-out files' tokens per byte."""
        losses = [network.loss(w[:, :-1], w[:, 1:])[0] for w in torch.split(self._windows, 8)]
        return float(torch.stack(losses).mean()) * self._scale


class RunLog:
    """Lines to the terminal and to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: str) -> None:
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


class Progress:
    """Means since the last line of the log."""

    def __init__(self, num_tokens: int) -> None:
        self._since_s = time.monotonic()
        self._tokens_then = num_tokens
        self._losses: list[float] = []
        self._balances: list[float] = []

    def add(self, loss: float, balance: float) -> None:
        self._losses.append(loss)
        self._balances.append(balance)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._since_s >= LOG_INTERVAL_S

    def summarize(self, num_tokens: int, routes: Sequence[torch.Tensor], num_experts: int) -> str:
        """routes: per layer [tokens, k]; loads are relative to an even share, over all layers."""
        rate = (num_tokens - self._tokens_then) / (time.monotonic() - self._since_s)
        loads = torch.stack([torch.bincount(r.flatten(), minlength=num_experts) for r in routes])
        even = loads.float().mean()
        return (
            f"tokens_per_s {rate:.0f} train_loss {np.mean(self._losses):.4f} "
            f"balance {np.mean(self._balances):.3f} "
            f"min_load {loads.min() / even:.2f} max_load {loads.max() / even:.2f}"
        )


def train_process(
    process_id: int,
    shared: SharedState,
    arguments: argparse.Namespace,
    train_files: Files,
    probe: HeldOutProbe,
) -> None:
    """The loop of one process; process 0 also keeps the clock, the log and the checkpoint."""
    torch.set_num_threads(1)
    network = shared.network
    assert isinstance(network, Network)
    owned = owned_parameter_names(network, process_id, arguments.processes)
    optimizers = make_optimizers(network, owned, arguments)
    base_lrs = [[group["lr"] for group in o.param_groups] for o in optimizers]
    step = ParallelStep(shared, process_id, owned)
    is_first = process_id == 0
    log = RunLog(arguments.work_folder / "train.log")
    epoch_tokens = sum(map(len, train_files))
    num_tokens = num_steps = 0
    elapsed_s = 0.0
    checkpoint_path = arguments.work_folder / f"checkpoint_{process_id}.pt"
    if arguments.resume and checkpoint_path.exists():
        saved = torch.load(checkpoint_path, weights_only=True)
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        elapsed_s, num_tokens, num_steps = saved["elapsed_s"], saved["tokens"], saved["steps"]
        if is_first:
            network.load_state_dict(saved["network"])
    shared.barrier.wait()

    sampler = WindowSampler(train_files, hash((arguments.seed, process_id, num_steps)) % 2**32)
    budget_s = arguments.minutes * 60.0
    started_s = time.monotonic() - elapsed_s
    saved_at_s = elapsed_s
    progress = Progress(num_tokens)
    while elapsed_s < budget_s:
        done_share = elapsed_s / budget_s
        length = next(length for until, length in arguments.lengths if done_share < until)
        num_windows = arguments.batch_tokens // length // arguments.processes
        windows = torch.from_numpy(sampler.next_windows(num_windows, length))
        loss, balance, routes = network.loss(windows[:, :-1], windows[:, 1:])
        (loss + arguments.balance_loss * balance).backward()
        scale = learning_rate_scale(done_share, arguments.warm_up)
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * scale
        elapsed_s = step.finish(optimizers, MAX_GRAD_NORM, time.monotonic() - started_s)
        num_tokens += windows[:, 1:].numel() * arguments.processes
        num_steps += 1
        progress.add(loss.item(), balance.item())

        if is_first and progress.is_due:
            means = progress.summarize(num_tokens, routes, network.config.num_experts)
            log.write(
                f"elapsed_s {elapsed_s:.0f} step {num_steps} tokens {num_tokens} "
                f"epoch {num_tokens / epoch_tokens:.2f} length {length} {means}"
            )
            progress = Progress(num_tokens)
        if elapsed_s - saved_at_s >= arguments.checkpoint_minutes * 60.0:
            saved_at_s = elapsed_s
            content = {
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "elapsed_s": elapsed_s,
                "tokens": num_tokens,
                "steps": num_steps,
            }
            if is_first:
                content["network"] = network.state_dict()
                bits = probe.bits_per_byte(network)
                log.write(f"elapsed_s {elapsed_s:.0f} held_out_bits_per_byte {bits:.4f}")
            torch.save(content, checkpoint_path.with_suffix(".new"))
            checkpoint_path.with_suffix(".new").replace(checkpoint_path)
            shared.barrier.wait()
    if is_first:
        summary = {
            "steps": num_steps,
            "tokens": num_tokens,
            "epochs": round(num_tokens / epoch_tokens, 3),
            "minutes": round(elapsed_s / 60.0, 1),
            "processes": arguments.processes,
            "dtype": arguments.dtype,
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        (arguments.work_folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
        log.write(f"done {summary} held_out_bits_per_byte {probe.bits_per_byte(network):.4f}")


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(PROCESS_ENVIRONMENT)
    torch.manual_seed(arguments.seed)
    export_folder = arguments.work_folder / "export"
    export_folder.mkdir(parents=True, exist_ok=True)
    config = NetworkConfig()
    corpus = split_corpus(read_standard_library())
    tokenizer = train_tokenizer(corpus.train, config.vocab_size)
    save_tokenizer(tokenizer, export_folder, config.max_position_embeddings)
    train_files = encode_files(tokenizer, corpus.train)
    held_out_files = encode_files(tokenizer, corpus.held_out)
    network = Network(config, getattr(torch, arguments.dtype))
    RunLog(arguments.work_folder / "train.log").write(
        f"train {len(corpus.train)} files {corpus.train_bytes} bytes "
        f"{sum(map(len, train_files))} tokens; held out {len(corpus.held_out)} files "
        f"{corpus.held_out_bytes} bytes {sum(map(len, held_out_files))} tokens; "
        f"parameters {sum(p.numel() for p in network.parameters())}; {vars(arguments)}"
    )
    probe = HeldOutProbe(held_out_files, corpus.held_out_bytes)
    shared = SharedState.create(network, arguments.processes)
    spawn(  # type: ignore[no-untyped-call]
        train_process, (shared, arguments, train_files, probe), nprocs=arguments.processes
    )
    export_network(network, export_folder, end_of_text_id(tokenizer))


if __name__ == "__main__":
    main()
