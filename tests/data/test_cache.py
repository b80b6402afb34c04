"""The cache of tokens: never stale, never half-written, whoever is killed."""


import pytest

from lit_probsft.data import ByteTokenizer, InstructionDataModule, Rows
from lit_probsft.errors import UserError

DYING = """
import multiprocessing, os, signal

def row(row):
    if multiprocessing.parent_process() is not None and row["prompt"] == "What is 5?":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is short
    return {"prompt": row["prompt"], "response": row["response"]}
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_tokenization_with_an_error(tmp_path, jsonl, monkeypatch):
    (tmp_path / "dying_rows.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    path = jsonl([{"prompt": f"What is {i}?", "response": "It is."} for i in range(12)])
    source = Rows(path, row_function="dying_rows.row")
    cache = tmp_path / "cache"
    data = InstructionDataModule(source, tokenizer=ByteTokenizer(), num_proc=2, cache_dir=str(cache))
    with pytest.raises(UserError, match="^data.num_proc: a process that tokenizes could not start, or has ended"):
        data.setup("fit")
    assert [file for file in cache.rglob("*") if file.is_file()] == []
