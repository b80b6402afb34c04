"""How a tokenizer is obtained: one that exists, or one made here for runs that need no network."""

from __future__ import annotations

import contextlib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.storage.hub import missing_folder, model_commit, refused_code, warn_of_code

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with generation marks: the template of the tokenizers made here."""


@dataclass(frozen=True)
class TokenizerSource(ABC):
    """Gives a fast tokenizer with a pad token. Subclasses are decorated with `@dataclass(frozen=True)` too."""

    @abstractmethod
    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        """The tokenizer, a `PreTrainedTokenizerFast`.

        Args:
            texts: gives the texts of the training conversations, for a tokenizer that learns from them.
        """

    @property
    def learns(self) -> bool:
        """Whether `load` reads `texts`; what it gives is then cached under what the texts are."""
        return False

    @property
    def commit(self) -> str | None:
        """The commit that is read, of a tokenizer on the hub."""
        return None

    def describe(self) -> dict[str, Any]:
        """The class and its fields as plain data, for the record of a run."""
        return {"tokenizer": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class PretrainedTokenizer(TokenizerSource):
    """The tokenizer of a model on the hub or in a local folder.

    Args:
        name_or_path: hub id or folder.
        revision: branch, tag or commit on the hub.
        trust_remote_code: let the repository's own code run.
        pad_token: an existing token to pad with in place of the tokenizer's own; see `checked_tokenizer` for what pads
            where it has none. No token is ever added, since the model would have no embedding for it.
    """

    name_or_path: str
    revision: str | None = None
    trust_remote_code: bool = False
    pad_token: str | None = None

    @property
    def commit(self) -> str | None:
        """As the hub tells it."""
        return model_commit(self.name_or_path, self.revision)

    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        """Reads the tokenizer; refuses one that is missing, slow, or without any token to pad with."""
        tokenizer = read_tokenizer(self.name_or_path, self.revision, self.trust_remote_code)
        return checked_tokenizer(tokenizer, self.pad_token)


def read_tokenizer(name_or_path: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A tokenizer as it lies on the hub or in a folder; beside adapters without one that of their base. Arguments as
    `PretrainedTokenizer`.

    Raises:
        UserError: there is none, or its own code would have to run.
    """
    from transformers import AutoTokenizer

    path = Path(name_or_path).expanduser()
    local, hint = missing_folder(name_or_path)
    if local:
        raise UserError("name_or_path", f"no such folder: {name_or_path!r}.{hint}")
    place = str(path) if path.exists() else name_or_path
    if trust_remote_code:
        warn_of_code("trust_remote_code", place, revision)
    try:
        revision = model_commit(place, revision) or revision or "main"
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # a missing file, a refused connection and a broken file share no base class
        if (base := _base_of_adapters(place, revision)) is not None:
            return read_tokenizer(*base, trust_remote_code)
        hint = near_matches(name_or_path, ["ByteTokenizer", "BPETokenizer"])
        reason = first_line(error)  # may end before it gives one
        why = ", which has none that can be read" if reason.endswith(":") else f": {reason}"
        raise refused_code(error, "trust_remote_code", place, revision) or UserError(
            "name_or_path", f"expected a folder or a hub id that holds a tokenizer, got {name_or_path!r}{why}{hint}"
        ) from error


def _base_of_adapters(place: str, revision: str | None) -> tuple[str, str | None] | None:
    """Name and revision of their base, of adapters that lie without a tokenizer."""
    from transformers.utils import cached_file

    from lit_probsft.storage.adapter_folder import adapters_at, read_config

    folder = adapters_at(place, revision)
    if folder is None:
        return None
    for name in ("tokenizer_config.json", "tokenizer.json"):
        with contextlib.suppress(OSError, ValueError):
            if cached_file(place, name, revision=revision or "main"):
                return None  # one that cannot be read
    named = read_config(folder, "name_or_path")
    base = named.get("base_model_name_or_path")
    return None if not base or adapters_at(base, named.get("revision")) else (base, named.get("revision"))


@dataclass(frozen=True)
class ByteTokenizer(TokenizerSource):
    """Every byte is a token, its value the id; 256 `<|pad|>`, 257 `<|im_start|>`, 258 `<|im_end|>` (end of turn and
    text).

    Needs no file. Its chat template is ChatML with generation marks.
    """

    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        """Builds the tokenizer; `texts` is not read."""
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
        return _dressed(tokenizer, use_regex=False)


@dataclass(frozen=True)
class BPETokenizer(TokenizerSource):
    """Byte-level BPE learnt from the training rows; the same rows give the same tokenizer.

    Args:
        vocab_size: most tokens it may have, the 256 bytes and 3 special ones included. Few rows give fewer.
    """

    vocab_size: int = 8192

    def __post_init__(self) -> None:
        if self.vocab_size < 259:
            raise UserError(
                "vocab_size", f"expected at least 259 (256 bytes and 3 special tokens), got {self.vocab_size}"
            )

    @property
    def learns(self) -> bool:
        """True."""
        return True

    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        """Learns the merges from `texts()`."""
        from tokenizers import Tokenizer, pre_tokenizers
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer

        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[PAD, TURN_START, TURN_END],
            # Sorted, for the library's own order differs from process to process, and ids follow it.
            initial_alphabet=sorted(_byte_characters()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts(), trainer=trainer)
        return _dressed(tokenizer, use_regex=True)


def as_tokenizer_source(value: Any) -> Any:
    """A text stands for `PretrainedTokenizer(text)`; a loaded tokenizer and a source stay what they are."""
    return PretrainedTokenizer(value) if isinstance(value, str) else value


def checked_tokenizer(tokenizer: Any, pad_token: str | None = None) -> Any:
    """`tokenizer` itself, with `pad_token` set where one is named.

    Where none is named and it has none, a special token made for padding is taken (`<pad>`,
    `<|finetune_right_pad_id|>` ...), else one that ends texts (`<|endoftext|>`), else its eos token. Which one makes no
    difference: padding is told by its place, and neither seen nor learnt.

    Raises:
        UserError: it is not a fast tokenizer, `pad_token` is not in its vocabulary, or none of its tokens can pad.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "name_or_path",
            f"expected a fast tokenizer (one with a tokenizer.json), got a slow one, {type(tokenizer).__name__}",
        )
    if pad_token is not None:
        if pad_token not in (vocabulary := tokenizer.get_vocab()):
            hint = near_matches(pad_token, _pad_candidates(tokenizer)) or near_matches(pad_token, vocabulary)
            raise UserError(
                "pad_token", f"{pad_token!r} is not in the tokenizer's vocabulary, and none is added.{hint}"
            )
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = _default_pad_token(tokenizer)
    return tokenizer


def special_tokens(tokenizer: Any) -> list[str]:
    """The texts of all special tokens, those that only the vocabulary marks as such included."""
    marked = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *marked]))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of everything that decides which ids a text gets."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
    digest.update(repr(sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())).encode())
    return digest.hexdigest()


# A token for padding, and no more: `<|vision_pad|>` and `<|fim_pad|>` of Qwen stand for something.
_PAD = re.compile(r"\W*(finetune_right_)?pad(ding)?(_id|_token)?\W*", re.IGNORECASE)
_END_OF_TEXT = re.compile(r"\W*end_?of_?text\W*", re.IGNORECASE)


def _default_pad_token(tokenizer: Any) -> str:
    names = _pad_candidates(tokenizer)
    for kind in (_PAD, _END_OF_TEXT):
        if found := [name for name in names if kind.fullmatch(name)]:
            return found[0]
    if tokenizer.eos_token is not None:
        eos: str = tokenizer.eos_token
        return eos
    candidates = ", ".join(repr(name) for name in names[:5]) or "any other"
    raise UserError(
        "pad_token",
        "the tokenizer has neither a pad token nor one that ends texts; name an existing token (its padding "
        f"is masked), such as {candidates}",
    )


def _pad_candidates(tokenizer: Any) -> list[str]:
    """Special tokens, those that look made for padding first."""
    names = special_tokens(tokenizer)
    wanted = ("pad", "unk", "reserved")
    return sorted(
        names, key=lambda name: next((i for i, part in enumerate(wanted) if part in name.lower()), len(wanted))
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte value, in the order of the values."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


def _dressed(tokenizer: Any, *, use_regex: bool) -> Any:
    """A `tokenizers` model with byte-level reading and writing, the special tokens and the chat template."""
    from tokenizers import AddedToken, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (PAD, TURN_START, TURN_END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[TURN_START],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
