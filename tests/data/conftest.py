import json

import pytest

from lit_probsft.data import BPETokenizer, ByteTokenizer
from tests.data.chat_templates import SPECIAL_TOKENS

CORPUS = ["How many apples are left?", "There are 12 apples left, and\n\n4 pears.", "añb 🎈 ok"] * 3


@pytest.fixture(scope="session")
def byte_tokenizer():
    return ByteTokenizer().load(list)


@pytest.fixture(scope="session")
def bpe_tokenizer():
    return BPETokenizer(300).load(lambda: CORPUS)


@pytest.fixture(scope="session")
def many_specials():
    """A byte tokenizer with the special tokens of every template in the tests."""
    tokenizer = ByteTokenizer().load(list)
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def metaspace_tokenizer():
    """A tokenizer that prepends a blank to every text, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    trainer = BpeTrainer(vocab_size=200, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture
def jsonl(tmp_path):
    """A function that writes rows to a JSON lines file and returns its path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def questions():
    """24 rows of unequal length."""
    return [
        {"prompt": f"What is {i}?" + " Say." * (i * 7 % 11), "response": f"It is {i}." * (1 + i % 3)} for i in range(24)
    ]
