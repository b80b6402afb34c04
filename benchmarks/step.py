"""A whole optimizer step: real tokens per second of the same model on the same file, with lit_probsft and others.

    python -m benchmarks.step --train train.jsonl --prompt question --response answer
    python -m benchmarks.step --train train.jsonl --prompt question --response answer --device cuda

Each variant is a training loop in its own process, and the loops take turns, one block of steps at a time. Padding does
not count as tokens. All variants train the same model from the same random weights with AdamW and gradients clipped at
norm 1. "random" batches are those of a shuffled epoch; "pooled" batches (the data module's default) have documents of
similar length.

`trl` is TRL's SFTTrainer with its own defaults, which include gradient checkpointing; `trl, no checkpointing` is the
same without it. If TRL is not installed, both are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks import harness
from lit_probsft import InstructionDataModule, ProbSFTModule, RandomCausalLM
from lit_probsft.data import BPETokenizer, Rows
from lit_probsft.head.layer import HeadRequest
from lit_probsft.model.forward import forward_with_objective, install_head
from lit_probsft.objectives import NLL, NegP
from lit_probsft.training.module import default_optimizer
from lit_probsft.training.optim import Schedule, parameter_groups

VOCABULARY = {"cpu": 32768, "cuda": 151936}

MODELS: dict[str, dict[str, Any]] = {
    # 19.7M parameters, 16.8M of them in the two embeddings.
    "cpu": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    # The shape of Qwen2.5-1.5B.
    "cuda": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}

POOL = 50  # the data module's default: optimizer steps whose documents are sorted by length together
CLIP = 1.0


# --- shared by all variants


def make_data(options: argparse.Namespace, pool: int) -> InstructionDataModule:
    """The file's rows, tokenized by a BPE trained on them, with `sequences` documents per step."""
    data = InstructionDataModule(
        train=Rows(options.train, prompt=options.prompt, response=options.response),
        tokenizer=BPETokenizer(32768),
        batch_size=options.sequences,
        length_pool=pool,
        cache_dir=options.cache,
    )
    data.setup("fit")
    return data


def make_model(options: argparse.Namespace, tokenizer: Any) -> Any:
    """The model with the same random weights in every call, in fp32 on the device."""
    source = RandomCausalLM({"model_type": "qwen2", "vocab_size": options.vocab, **options.model})
    return source.load(tokenizer, torch.float32).to(options.device)


def endless(data: InstructionDataModule, device: str) -> Iterator[dict[str, Any]]:
    """Batches of all epochs in turn, on the device."""
    loader = data.train_dataloader()
    for epoch in range(10**9):
        loader.set_epoch(epoch)
        for batch in loader:
            yield {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


def counts(batch: Mapping[str, Any]) -> dict[str, int]:
    """Real tokens, supervised tokens, squared lengths (for attention) and padded size of a batch."""
    lengths = batch["attention_mask"].sum(-1)
    return {
        "tokens": int(lengths.sum()),
        "supervised": int((batch["labels"][:, 1:] != -100).sum()),
        "squares": int(lengths.square().sum()),
        "positions": batch["input_ids"].numel(),
    }


def autocast(options: argparse.Namespace) -> torch.autocast:
    """bf16 autocast on a GPU, with fp32 weights; none on a CPU."""
    return torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.device == "cuda")


# --- loops


def plain_loop(gate: harness.Gate, options: argparse.Namespace, pool: int, loss_name: str) -> None:
    """Forward, backward, clipping and AdamW, the same for our losses and for transformers' own."""
    torch.set_num_threads(options.threads)
    data = make_data(options, pool)
    model = make_model(options, data.tokenizer)
    loss_of = LOSSES[loss_name](model)
    optimizer = default_optimizer(parameter_groups(model))
    batches = endless(data, options.device)
    gate.open()
    while True:
        batch = next(batches)
        with autocast(options):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        gate.step(counts(batch))


def _module_loss(objective: Any) -> Callable[[Any], Callable[[Mapping[str, Any]], torch.Tensor]]:
    def bind(model: Any) -> Callable[[Mapping[str, Any]], torch.Tensor]:
        module = ProbSFTModule(model, objective)
        return lambda batch: module.compute(batch, normalizer=batch["window_tokens"])[1]

    return bind


def _transformers_loss(model: Any) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    names = ("input_ids", "attention_mask", "labels")
    return lambda batch: model(**{name: batch[name] for name in names}, use_cache=False).loss


LOSSES: dict[str, Callable[[Any], Callable[[Mapping[str, Any]], torch.Tensor]]] = {
    "NLL": _module_loss(NLL()),
    "NegP": _module_loss(NegP()),
    "transformers": _transformers_loss,
}


class _GateCallback(L.Callback):
    """Reports each optimizer step of Lightning's loop to the gate."""

    def __init__(self, gate: harness.Gate) -> None:
        self.gate = gate

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.gate.open()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.gate.step(counts(batch))


def lightning_loop(gate: harness.Gate, options: argparse.Namespace, pool: int) -> None:
    """`Trainer.fit` as users run it, with everything that the module does in a step, without loggers."""
    torch.set_num_threads(options.threads)
    data = make_data(options, pool)
    source = RandomCausalLM({"model_type": "qwen2", "vocab_size": options.vocab, **options.model})
    trainer = L.Trainer(
        max_steps=10**6,
        max_epochs=-1,
        accelerator=options.device,
        devices=1,
        precision="bf16-mixed" if options.device == "cuda" else "32-true",
        gradient_clip_val=CLIP,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_GateCallback(gate)],
    )
    trainer.fit(ProbSFTModule(source, NLL(), schedule=Schedule("constant", warmup=0)), data)


def trl_loop(gate: harness.Gate, options: argparse.Namespace, changes: Mapping[str, Any]) -> None:
    """TRL's SFTTrainer on the same rows as prompt and completion, with its defaults except for `changes`."""
    torch.set_num_threads(options.threads)
    trainer, folder = make_trl_trainer(options, changes, gate)
    with folder:
        trainer.train()


def make_trl_trainer(options: argparse.Namespace, changes: Mapping[str, Any], gate: harness.Gate | None) -> Any:
    """The trainer and the temporary folder that it needs."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    data = make_data(options, pool=0)
    # Only the device, the batch size and the output are set.
    folder = tempfile.TemporaryDirectory()
    config = SFTConfig(
        output_dir=folder.name,
        per_device_train_batch_size=options.sequences,
        max_steps=10**6,
        max_grad_norm=CLIP,
        use_cpu=options.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{"bf16": options.device == "cuda", **changes},
    )

    class Counting(SFTTrainer):
        last: Mapping[str, int]

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.last = counts(inputs)
            return super().training_step(model, inputs, *args, **kwargs)

    class Stop(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            assert gate is not None
            gate.open()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            assert gate is not None
            gate.step(trainer.last)

    rows = Rows(options.train, prompt=options.prompt, response=options.response)
    conversations = [rows.conversation(row) for row in rows.load()]
    trainer = Counting(
        model=make_model(options, data.tokenizer),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": c[:-1], "completion": c[-1:]} for c in conversations]),
        processing_class=data.tokenizer,
        callbacks=[Stop()] if gate is not None else [],
    )
    return trainer, folder


# --- the same loss


def same_loss(options: argparse.Namespace) -> dict[str, Any]:
    """The NLL of one batch by all implementations, from the same weights, without autocast."""
    data = make_data(options, pool=0)
    batch = next(endless(data, options.device))
    model = make_model(options, data.tokenizer)
    values = {"transformers": _transformers_loss(model)(batch).item()}
    if has_trl():
        trainer, folder = make_trl_trainer(options, {"gradient_checkpointing": False, "bf16": False}, None)
        with folder, torch.no_grad():
            names = ("input_ids", "attention_mask", "labels")
            values["trl"] = trainer.compute_loss(trainer.model, {name: batch[name] for name in names}).item()
    install_head(model)
    request = HeadRequest(batch["labels"], NLL())
    values["ours"] = forward_with_objective(model, batch["input_ids"], request)[1].item()
    expected = values.pop("transformers")
    return {"loss": values, **harness.agreement(values, expected, 1e-6)}


def has_trl() -> bool:
    """Whether TRL is installed."""
    return importlib.util.find_spec("trl") is not None


# --- the run


def loops(options: argparse.Namespace) -> list[harness.Loop]:
    """All variants, named by loss and batches."""
    found = [
        harness.Loop("ours NLL, pooled", plain_loop, (options, POOL, "NLL")),
        harness.Loop("ours NegP, pooled", plain_loop, (options, POOL, "NegP")),
        harness.Loop("ours NLL, random", plain_loop, (options, 0, "NLL")),
        harness.Loop("ours NegP, random", plain_loop, (options, 0, "NegP")),
        harness.Loop("ours NLL, pooled, Trainer.fit", lightning_loop, (options, POOL)),
        harness.Loop(REFERENCE, plain_loop, (options, 0, "transformers")),
        harness.Loop("transformers, pooled", plain_loop, (options, POOL, "transformers")),
    ]
    if has_trl():
        found.append(harness.Loop("trl", trl_loop, (options, {})))
        found.append(harness.Loop("trl, no checkpointing", trl_loop, (options, {"gradient_checkpointing": False})))
    if options.only:
        known = [loop.name for loop in found]
        if unknown := set(options.only) - set(known):
            raise SystemExit(f"--only: expected some of {known}, got {sorted(unknown)}")
        found = [loop for loop in found if loop.name in options.only]
    return found


REFERENCE = "transformers, random"


def model_flops(options: argparse.Namespace, body: int, block: Mapping[str, float]) -> float:
    """The floating-point operations that forward and backward need without padding.

    These are 6 per weight and token in the body, 6 per output weight and *supervised* token in the head, and causal
    attention over the documents' own lengths: 4 T^2/2 H forward and twice that backward.
    """
    hidden, layers = options.model["hidden_size"], options.model["num_hidden_layers"]
    head = options.vocab * hidden * block["supervised"]
    return 6 * (body * block["tokens"] + head + layers * hidden * block["squares"])


def run(options: argparse.Namespace) -> Path:
    """Compare the losses, time the loops and write the result."""
    torch.set_num_threads(options.threads)
    data = make_data(options, POOL)  # fills the cache so that no loop tokenizes
    report = {name: data.report["train"][name] for name in ("kept", "tokens", "supervised_tokens", "max_length")}
    with torch.device("meta"):
        shape = RandomCausalLM({"model_type": "qwen2", "vocab_size": options.vocab, **options.model}).load(
            data.tokenizer, torch.float32
        )
    parameters = sum(p.numel() for p in shape.parameters())
    body = sum(p.numel() for p in shape.model.layers.parameters() if p.ndim >= 2)
    compared = harness.in_fresh_process(same_loss, options)
    harness.say(f"same loss: {compared['agree']} ({compared['relative_error']})")
    blocks = harness.time_loops(
        loops(options),
        rounds=options.rounds,
        steps=options.steps,
        one_at_a_time=options.device == "cuda",
        report=harness.say,
    )
    rates = {name: [block["tokens"] / block["seconds"] for block in found] for name, found in blocks.items()}
    references = [name for name in (REFERENCE, "transformers, pooled", "trl", "trl, no checkpointing") if name in rates]
    relative = {f"to {name}": harness.ratios(rates, name) for name in references}
    per_cpu = {name: [block["tokens"] / block["cpu_seconds"] for block in found] for name, found in blocks.items()}
    cpu_relative = {f"to {name}": harness.ratios(per_cpu, name) for name in references}
    variants = {name: _summary(options, body, blocks[name], rates[name]) for name in blocks}
    path = harness.write_result(
        "step",
        {key: value for key, value in vars(options).items() if key != "cache"},
        options.device,
        model={"parameters": parameters, "body_parameters": body},
        data={**report, "tokenizer_size": len(data.tokenizer)},
        skipped={} if has_trl() else {"trl": "not installed"},
        same_loss=compared,
        variants=variants,
        throughput_ratios=relative,
        cpu_throughput_ratios={} if options.device == "cuda" else cpu_relative,
    )
    rows = [
        {
            "variant": name,
            "tokens/s": round(facts["tokens_per_second"]),
            **{f"x {key[3:]}": values[name] for key, values in relative.items()},
            "real share": facts["real_share"],
            "peak MiB": round(facts["peak_mib"]),
        }
        for name, facts in variants.items()
    ]
    print(harness.table(rows))
    print(f"\nsame loss: {compared['agree']}\n{path}")
    return path


def _summary(
    options: argparse.Namespace, body: int, blocks: list[dict[str, float]], rates: list[float]
) -> dict[str, Any]:
    total = {key: sum(block[key] for block in blocks) for key in blocks[0]}
    return {
        "tokens_per_second": harness.significant(total["tokens"] / total["seconds"]),
        "tokens_per_cpu_second": harness.significant(total["tokens"] / total["cpu_seconds"]),
        "per_block": {**harness.spread(rates), "rounds": harness.rounded(rates)},
        "supervised_share": harness.significant(total["supervised"] / total["tokens"], 3),
        "real_share": harness.significant(total["tokens"] / total["positions"], 3),
        "model_gflops_per_second": harness.significant(model_flops(options, body, total) / total["seconds"] / 1e9),
        "peak_mib": harness.significant(max(block["peak_bytes"] for block in blocks) / harness.MIB),
    }


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options; the model is that of the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", required=True, help="a .jsonl, .json, .csv or .parquet file")
    parser.add_argument("--prompt", default="prompt", help="column, or a template of columns")
    parser.add_argument("--response", default="response", help="column, or a template of columns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sequences", type=int, help="per optimizer step; by default 16 on cpu, 26 on cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="time only these")
    parser.add_argument("--cache", help="folder of the token cache; by default the data module's")
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    options = parser.parse_args(args)
    # 26 rows of GSM8K are about 4096 tokens.
    options.sequences = options.sequences or {"cpu": 16, "cuda": 26}[options.device]
    options.model, options.vocab = MODELS[options.device], VOCABULARY[options.device]
    return options


if __name__ == "__main__":
    run(parse())
