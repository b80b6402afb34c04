import json

import pytest
from tokenizers import AddedToken, Tokenizer

from lit_probsft.data import BPETokenizer, ByteTokenizer, PretrainedTokenizer, tokenize_conversation
from lit_probsft.data.tokens.tokenizers import checked_tokenizer, tokenizer_fingerprint
from lit_probsft.errors import UserError
from tests.data.conftest import CORPUS

TEXT = "añb 🎈\n\n  <|im_start|>user\nhi<|im_end|> \x00 12"
SINGLE = [{"role": "user", "content": "2 + 2 = ?"}, {"role": "assistant", "content": "It is 4."}]


def test_the_id_of_a_byte_is_its_value_and_special_tokens_follow(byte_tokenizer):
    assert byte_tokenizer("añ\n", add_special_tokens=True)["input_ids"] == list("añ\n".encode())
    assert byte_tokenizer("<|im_start|><|im_end|><|pad|>")["input_ids"] == [257, 258, 256]
    assert len(byte_tokenizer) == 259
    assert (byte_tokenizer.pad_token_id, byte_tokenizer.eos_token_id, byte_tokenizer.bos_token_id) == (256, 258, None)


@pytest.mark.parametrize("kind", ["byte_tokenizer", "bpe_tokenizer"])
def test_a_saved_tokenizer_loads_unchanged_in_transformers(request, tmp_path, kind):
    from transformers import AutoTokenizer

    tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), PretrainedTokenizer(str(tmp_path)).load(list)):
        assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
        assert loaded.decode(loaded(TEXT)["input_ids"], clean_up_tokenization_spaces=False) == TEXT
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert len(loaded) == len(tokenizer)
        assert tokenize_conversation(loaded, SINGLE) == tokenize_conversation(tokenizer, SINGLE)
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_bpe_is_trained_on_the_rows_deterministically(bpe_tokenizer):
    again = BPETokenizer(300).load(lambda: CORPUS)
    assert again.backend_tokenizer.to_str() == bpe_tokenizer.backend_tokenizer.to_str()
    assert 259 < len(bpe_tokenizer) <= 300
    assert len(bpe_tokenizer("How many apples")["input_ids"]) < len("How many apples")
    assert BPETokenizer(300).learns
    assert not ByteTokenizer().learns


def test_bpe_needs_a_vocabulary_of_at_least_the_bytes():
    with pytest.raises(UserError, match=r"^vocab_size: expected at least 259"):
        BPETokenizer(258)


@pytest.fixture
def padless(tmp_path):
    """A saved tokenizer without a pad token, although its vocabulary has one."""
    tokenizer = ByteTokenizer().load(list)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "padless")
    return str(tmp_path / "padless")


def without_pad(*others, eos="<|im_end|>"):
    """A byte tokenizer without a pad token, in which `<|pad|>` is not special, with other special tokens."""
    from transformers import PreTrainedTokenizerFast

    model = json.loads(ByteTokenizer().load(list).backend_tokenizer.to_str())
    model["added_tokens"] = [token for token in model["added_tokens"] if token["content"] != "<|pad|>"]
    bare = Tokenizer.from_str(json.dumps(model))
    bare.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in others])
    return PreTrainedTokenizerFast(tokenizer_object=bare, **({} if eos is None else {"eos_token": eos}))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (["<|finetune_right_pad_id|>", "<|end_of_text|>"], "<|finetune_right_pad_id|>"),
        (["<|vision_pad|>", "<|fim_pad|>", "<|endoftext|>"], "<|endoftext|>"),
        (["<unk>", "[PAD]"], "[PAD]"),
        (["<pad>", "<|image_pad|>"], "<pad>"),
        (["<|end▁of▁sentence|>", "<|padding|>"], "<|padding|>"),
        (["<|reserved_special_token_0|>", "<|image_pad|>"], "<|im_end|>"),
    ],
)
def test_the_default_pad_token_is_one_made_for_padding_else_the_end_of_text(others, expected):
    tokenizer = without_pad(*others)
    size = len(tokenizer)
    assert checked_tokenizer(tokenizer).pad_token == expected
    assert len(tokenizer) == size
    assert tokenizer.eos_token == "<|im_end|>"
    assert checked_tokenizer(without_pad(*others), "<|im_start|>").pad_token == "<|im_start|>"


def test_a_tokenizer_without_a_possible_pad_token_is_refused_with_candidates():
    with pytest.raises(UserError, match=r"^pad_token: .*such as '<\|im_start\|>', '<\|im_end\|>'"):
        checked_tokenizer(without_pad(eos=None))


def test_a_pad_token_of_the_tokenizer_is_kept():
    tokenizer = without_pad("<pad>")
    tokenizer.pad_token = "<|im_start|>"
    assert checked_tokenizer(tokenizer).pad_token == "<|im_start|>"


def test_an_existing_token_can_be_the_pad_token_and_none_is_added(padless):
    assert PretrainedTokenizer(padless).load(list).pad_token == "<|pad|>"
    tokenizer = PretrainedTokenizer(padless, pad_token="<|im_end|>").load(list)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 258
    assert len(tokenizer) == 259
    with pytest.raises(
        UserError, match=r"^pad_token: '<pad>' is not in the tokenizer's vocabulary.*Did you mean '<\|pad\|>'"
    ):
        PretrainedTokenizer(padless, pad_token="<pad>").load(list)


def test_a_missing_or_empty_folder_is_refused_and_named(tmp_path, padless):
    with pytest.raises(UserError, match=r"^name_or_path: no such folder: .*Did you mean 'padless'"):
        PretrainedTokenizer(str(tmp_path / "padles")).load(list)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^name_or_path: expected a folder or a hub id that holds a tokenizer"):
        PretrainedTokenizer(str(tmp_path / "empty")).load(list)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"expected a fast tokenizer .* got a slow one, Slow"):
        checked_tokenizer(Slow())
