"""Prepares the folder of a mistake: configuration, rows, and a completed run or model with something wrong."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests import tiny

CONFIG = """\
model:
  model:
    class_path: RandomCausalLM
    init_args:
      config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
        num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 256}
  objective: {class_path: NLL}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
  generation: {max_new_tokens: 4}
data:
  train: {class_path: Rows, init_args: {path: train.jsonl, prompt: question, response: answer}}
  validation: {class_path: Rows, init_args: {path: validation.jsonl, prompt: question, response: answer}}
  tokenizer: {class_path: ByteTokenizer}
  batch_size: 8
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
"""


def write_files(folder: Path, config: tuple[str | None, str | bytes] | None, files: dict[str, str | bytes]) -> None:
    """Write the rows, `files`, and c.yaml with the replacement that `config` gives."""
    tiny.write_rows(folder / "train.jsonl", 24)
    tiny.write_rows(folder / "validation.jsonl", 6, seed=1)
    text: str | bytes = CONFIG
    if config is not None:
        old, new = config
        assert old is None or CONFIG.count(old) == 1, old
        text = new if old is None else CONFIG.replace(old, str(new))
    for name, content in {"c.yaml": text, **files}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def file_with_the_name_of_the_run(folder: Path, trained: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "c").write_text("mine")


def a_pipe(folder: Path, trained: Path) -> None:
    os.mkfifo(folder / "p.jsonl")


def completed_run(folder: Path, trained: Path) -> None:
    shutil.copytree(trained, folder / "runs")


def a_link_in_the_run(folder: Path, trained: Path) -> None:
    completed_run(folder, trained)
    (folder / "runs" / "c" / "metrics.csv").unlink()
    (folder / "runs" / "c" / "metrics.csv").symlink_to("../../train.jsonl")


def damaged_checkpoints(folder: Path, trained: Path) -> None:
    completed_run(folder, trained)
    for path in (folder / "runs" / "c" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:3000])


def no_checkpoints(folder: Path, trained: Path) -> None:
    completed_run(folder, trained)
    shutil.rmtree(folder / "runs" / "c" / "checkpoints")


def no_chat_template(folder: Path, trained: Path) -> None:
    completed_run(folder, trained)
    (folder / "runs" / "c" / "hf" / "chat_template.jinja").unlink()


def broken_record(folder: Path, trained: Path) -> None:
    completed_run(folder, trained)
    (folder / "runs" / "c" / "run.json").write_text("{")


def compressed_rows_that_end_early(folder: Path, trained: Path) -> None:
    import pyarrow  # type: ignore[import-untyped]

    (folder / "t.csv.gz").write_bytes(gzip.compress(b"question,answer\na,b\n")[:-9])
    with pyarrow.CompressedOutputStream(str(folder / "t.jsonl.zst"), "zstd") as stream:
        stream.write(b'{"question": "a", "answer": "b"}\n')
    (folder / "t.jsonl.zst").write_bytes((folder / "t.jsonl.zst").read_bytes()[:-9])


def parquet_with_a_damaged_page(folder: Path, trained: Path) -> None:
    import pyarrow
    from pyarrow import parquet  # type: ignore[import-untyped]

    table = pyarrow.table({"question": ["a", "b", "c"], "answer": ["d", "second", "f"]})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    parquet.write_table(table, folder / "t.parquet", **options)
    (folder / "t.parquet").write_bytes((folder / "t.parquet").read_bytes().replace(b"econd", b"econt"))


def parquet_with_a_repeated_column(folder: Path, trained: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table([["a"], ["b"], ["c"]], names=["question", "answer", "answer"])
    parquet.write_table(table, folder / "t.parquet")


def parquet_with_pictures_for_answers(folder: Path, trained: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    row = {"question": "a", "answer": {"bytes": b"no picture", "path": None}}
    features = Features({"question": Value("string"), "answer": Image()})
    Dataset.from_list([row], features=features).to_parquet(folder / "t.parquet")


def model(folder: Path, trained: Path) -> Path:
    shutil.copytree(trained / "c" / "hf", folder / "m")
    return folder / "m" / "model.safetensors"


def damaged_gguf(folder: Path, trained: Path) -> None:
    (folder / "m.gguf").write_bytes(b"GGUF" + bytes(100))


def no_weights(folder: Path, trained: Path) -> None:
    model(folder, trained).unlink()


def no_safetensors(folder: Path, trained: Path) -> None:
    model(folder, trained).write_bytes(b"x" * 100)


def truncated_weights(folder: Path, trained: Path) -> None:
    weights = model(folder, trained)
    weights.write_bytes(weights.read_bytes()[:-100])


def missing_tensor(folder: Path, trained: Path) -> None:
    weights = model(folder, trained)
    tensors = load_file(weights)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


def no_config(folder: Path, trained: Path) -> None:
    model(folder, trained).with_name("config.json").unlink()


def broken_config(folder: Path, trained: Path) -> None:
    model(folder, trained).with_name("config.json").write_text("{")


def encoder_decoder(folder: Path, trained: Path) -> None:
    model(folder, trained).with_name("config.json").write_text('{"model_type": "t5"}')


def other_shapes(folder: Path, trained: Path) -> None:
    config = model(folder, trained).with_name("config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 32}))


class _Echo:
    def __reduce__(self) -> Any:
        return os.system, ("echo it has run",)


def pickled_weights(folder: Path, trained: Path) -> None:
    weights = model(folder, trained)
    weights.unlink()
    torch.save({"a": _Echo()}, weights.with_name("pytorch_model.bin"))
