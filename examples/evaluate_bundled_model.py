"""Score the bundled model on the held-out files and write its numbers into its model card.

    python -m examples.evaluate_bundled_model

Writes `evaluation.json` beside the weights and fills the marked sections of the card, so that no
number there is typed by hand. The held-out files are those of the interpreter that runs this; a
standard library of another version splits alike but is not the same text.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from examples.bundled_model.corpus import encode_files, read_standard_library, split_corpus
from examples.bundled_model.export import load_network
from examples.bundled_model.scoring import compressed_sizes, routing_skew, score_files
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH_SIZES = (1, 4, 16, 64)
PROMPTS = (
    "import os\n\n\ndef list_files(path):",
    "class TestStack(unittest.TestCase):\n    def test_push(self):",
    "for i in range(",
)
SAMPLE_TOKENS = 64


def parse_arguments() -> argparse.Namespace:
    bundled = Path(__file__).parents[1] / "src" / "janus_moe" / "bundled"
    parser = argparse.ArgumentParser(description="Evaluate the bundled model.")
    parser.add_argument("--model-folder", type=Path, default=bundled)
    parser.add_argument(
        "--training-record", type=Path, help="training.json of the run; default: as recorded before"
    )
    parser.add_argument("--window", type=int, default=1024, help="tokens of a scoring window")
    parser.add_argument("--stride", type=int, default=512, help="tokens scored per further window")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@torch.inference_mode()
def write_samples(folder: Path) -> tuple[list[dict[str, str]], float]:
    """Continuations by `transformers`, and the largest difference of its logits to ours."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = Path(__file__).read_text()
    tokens = tokenizer(text[:1500], return_tensors="pt").input_ids
    difference = (model(tokens).logits - load_network(folder).logits(tokens)).abs().max()
    samples: list[dict[str, str]] = []
    for prompt in PROMPTS:
        encoded = tokenizer(tokenizer.eos_token + prompt, return_tensors="pt")
        sample = {"prompt": prompt}
        for kind, options in (
            ("greedy", {"do_sample": False}),
            ("sampled", {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}),
        ):
            torch.manual_seed(0)
            output = model.generate(**encoded, max_new_tokens=SAMPLE_TOKENS, **options)
            new_tokens = output[0, encoded.input_ids.shape[1] :]
            sample[kind] = tokenizer.decode(new_tokens, skip_special_tokens=True)
        samples.append(sample)
    return samples, float(difference)


def evaluate(folder: Path, window: int, stride: int) -> dict[str, Any]:
    """Everything the card shows, less the record of the training."""
    corpus = split_corpus(read_standard_library())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = load_network(folder)
    started_s = time.monotonic()
    scores = score_files(network, encode_files(tokenizer, corpus.held_out), window, stride)
    scoring_s = time.monotonic() - started_s
    num_bytes = corpus.held_out_bytes
    samples, difference = write_samples(folder)
    sizes = compressed_sizes(corpus.held_out, corpus.train)
    config = network.config
    return {
        "model": {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "attention_heads": config.num_attention_heads,
            "key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "experts": config.num_experts,
            "experts_per_token": config.num_experts_per_tok,
            "expert_intermediate": config.moe_intermediate_size,
            "vocabulary": config.vocab_size,
        },
        "corpus": {
            "python": platform.python_version(),
            "train_files": len(corpus.train),
            "train_bytes": corpus.train_bytes,
            "held_out_files": len(corpus.held_out),
            "held_out_bytes": num_bytes,
            "held_out_tokens": scores.num_tokens,
        },
        "held_out": {
            "window_tokens": window,
            "stride_tokens": stride,
            "dtype": "float32",
            "bits_per_byte": scores.total_bits / num_bytes,
            "nats_per_token": scores.total_bits / scores.num_tokens * 0.6931471805599453,
            "scoring_s": round(scoring_s, 1),
        },
        "compressors": {
            name: {"bytes": size, "bits_per_byte": 8 * size / num_bytes}
            for name, size in sizes.items()
        },
        "routing": routing_skew(scores.routes, config.num_experts, BATCH_SIZES),
        "max_logit_difference_to_transformers": difference,
        "samples": samples,
    }


def render_training(result: dict[str, Any]) -> str:
    corpus, training, model = result["corpus"], result["training"], result["model"]
    return (
        f"{model['parameters'] / 1e6:.2f} M parameters: {model['layers']} layers, hidden size "
        f"{model['hidden']}, {model['attention_heads']} attention heads of {model['head_dim']} "
        f"over {model['key_value_heads']} key-value heads, {model['experts']} experts of "
        f"{model['expert_intermediate']} with {model['experts_per_token']} per token, vocabulary "
        f"{model['vocabulary']}, tied embeddings.\n\n"
        f"Trained on {corpus['train_files']} files ({corpus['train_bytes'] / 1e6:.1f} MB) of the "
        f"standard library of Python {corpus['python']}: {training['tokens'] / 1e6:.1f} M tokens "
        f"({training['epochs']:.2f} epochs) in {training['steps']} steps, "
        f"{training['minutes'] / 60:.2f} hours on {training['processes']} shared CPU cores, "
        f"products in {training['dtype']}, torch {training['torch']}:\n\n"
        f"```\npython -m examples.train_bundled_model --minutes {training['minutes']:g}\n```"
    )


def render_scores(result: dict[str, Any]) -> str:
    held_out, sizes, corpus = result["held_out"], result["compressors"], result["corpus"]
    lines = [
        f"{corpus['held_out_files']} files, {corpus['held_out_bytes']:,} bytes, "
        f"{corpus['held_out_tokens']:,} tokens.",
        "",
        "| | bits per byte | each file starts afresh |",
        "|---|---|---|",
        f"| **this model** | **{held_out['bits_per_byte']:.3f}** | yes |",
    ]
    for name, label, afresh in (
        ("gzip_per_file", "`gzip -9`, each file alone, sizes summed", "yes"),
        ("xz_per_file", "`xz -9`, each file alone, sizes summed", "yes"),
        ("gzip_concatenated", "`gzip -9`, all files as one stream", "no"),
        ("xz_concatenated", "`xz -9`, all files as one stream", "no"),
        ("xz_after_training_text", "`xz -9`, the same, after the training text", "no"),
    ):
        lines.append(f"| {label} | {sizes[name]['bits_per_byte']:.3f} | {afresh} |")
    lines += [
        "",
        f"Every byte of every file is predicted. A file is scored alone, after the end-of-text "
        f"token, in windows of {held_out['window_tokens']} tokens: the first scores all its "
        f"tokens, each further one {held_out['stride_tokens']} more with at least "
        f"{held_out['window_tokens'] - held_out['stride_tokens']} tokens of context. Bits are "
        f"cross-entropy under the shipped bfloat16 weights, computed in {held_out['dtype']} "
        f"({held_out['nats_per_token']:.3f} nats per token). But for the last row the compressors "
        "have no prior knowledge, whereas the model has read the rest of the library; the size of "
        "its weights is not counted. Against `transformers`, the largest difference of a logit is "
        f"{result['max_logit_difference_to_transformers']:.1e}.",
    ]
    return "\n".join(lines)


def render_routing(result: dict[str, Any]) -> str:
    batch_columns = " | ".join(f"B={batch_size}" for batch_size in BATCH_SIZES)
    lines = [
        "| layer | max / mean load | min / mean load | busiest quarter's share "
        f"| {batch_columns} |",
        "|---" * (4 + len(BATCH_SIZES)) + "|",
    ]
    for row in result["routing"]:
        distinct = " | ".join(
            f"{row['mean_distinct_experts'][str(batch_size)]:.1f}" for batch_size in BATCH_SIZES
        )
        lines.append(
            f"| {row['layer']} | {row['max_over_mean_load']:.2f} | "
            f"{row['min_over_mean_load']:.2f} | {row['share_of_busiest_quarter']:.1%} "
            f"| {distinct} |"
        )
    uniform = result["routing"][0]["mean_distinct_experts_if_uniform"]
    cells = " | ".join(f"{uniform[str(batch_size)]:.1f}" for batch_size in BATCH_SIZES)
    lines.append(f"| *uniform* | 1.00 | 1.00 | 25.0% | {cells} |")
    return "\n".join(lines)


def render_samples(result: dict[str, Any]) -> str:
    parts: list[str] = []
    for sample in result["samples"]:
        for kind in ("greedy", "sampled"):
            text = sample["prompt"] + "⟦" + sample[kind] + "⟧"
            parts.append(f"{kind.capitalize()}:\n\n````python\n{text}\n````")
    return "\n\n".join(parts)


def fill_card(card: str, sections: dict[str, str]) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    for name, text in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = card.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the card has no section {begin} ... {end}")
        card = f"{before}{begin}\n{text}\n{end}{after}"
    return card


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.model_folder
    output = folder / "evaluation.json"
    if arguments.training_record is not None:
        training = json.loads(arguments.training_record.read_text())
    else:
        training = json.loads(output.read_text())["training"]
    result = evaluate(folder, arguments.window, arguments.stride)
    result["training"] = training
    output.write_text(json.dumps(result, indent=2) + "\n")
    card = folder / "README.md"
    sections = {
        "training": render_training(result),
        "scores": render_scores(result),
        "routing": render_routing(result),
        "samples": render_samples(result),
    }
    card.write_text(fill_card(card.read_text(), sections))
    print(render_scores(result))


if __name__ == "__main__":
    main()
