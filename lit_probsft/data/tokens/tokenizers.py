"""Sources of tokenizers: a pretrained one, or one built here, which needs no network."""

from __future__ import annotations

import contextlib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.storage.gguf import check_gguf, gguf_at
from lit_probsft.storage.hub import missing_path, model_commit, refused_code, warn_of_code

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
"""ChatML with generation marks: the template of the tokenizers built here."""


_STOPS_ATTRIBUTE = "_lit_probsft_stops"


@dataclass(frozen=True)
class TokenizerSource(ABC):
    """Loads a fast tokenizer with a pad token. Decorate subclasses with `@dataclass(frozen=True)` too."""

    @abstractmethod
    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        """Return the tokenizer, a `PreTrainedTokenizerFast`.

        Args:
            texts: yields the texts of the training conversations, to train a tokenizer on.
        """

    @property
    def learns(self) -> bool:
        """Whether `load` trains on `texts`. The tokenizer is then cached under their fingerprint."""
        return False

    @property
    def commit(self) -> str | None:
        """The hub commit of the tokenizer, if known."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return the class name and the fields as plain data, for the run record."""
        return {"tokenizer": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class PretrainedTokenizer(TokenizerSource):
    """The tokenizer of a model on the hub or in a local folder.

    Args:
        name_or_path: hub id, folder or GGUF file.
        revision: branch, tag or commit on the hub.
        trust_remote_code: execute the repository's own code.
        pad_token: an existing token to pad with, instead of the tokenizer's own. If the tokenizer has none,
            `checked_tokenizer` chooses one. No token is added, because the model would have no embedding for it.
    """

    name_or_path: str
    revision: str | None = None
    trust_remote_code: bool = False
    pad_token: str | None = None

    @property
    @override
    def commit(self) -> str | None:
        return model_commit(self.name_or_path, self.revision)

    @override
    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        tokenizer = read_tokenizer(self.name_or_path, self.revision, self.trust_remote_code)
        return checked_tokenizer(tokenizer, self.pad_token)


def read_tokenizer(name_or_path: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer from the hub or a folder. For adapters without a tokenizer, load their base model's.

    Arguments as `PretrainedTokenizer`.

    Raises:
        UserError: there is no tokenizer, or it needs code that is not trusted.
    """
    from transformers import AutoTokenizer

    path = Path(name_or_path).expanduser()
    if problem := missing_path(name_or_path):
        raise UserError("name_or_path", problem)
    name = str(path) if path.exists() else name_or_path
    gguf = gguf_at(name_or_path)
    if trust_remote_code:
        warn_of_code("trust_remote_code", name, revision)
    try:
        revision = model_commit(name, revision) or revision or "main"
        if gguf is not None:
            check_gguf(gguf, revision)
        place, options = (name, {}) if gguf is None else (gguf.place, {"gguf_file": gguf.file})
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code, **options
        )
    except UserError:
        raise
    except Exception as error:  # a missing file, a refused connection and a broken file share no base class
        if (base := _base_of_adapters(name, revision)) is not None:
            return read_tokenizer(*base, trust_remote_code)
        hint = near_matches(name_or_path, ["ByteTokenizer", "BPETokenizer"])
        reason = first_line(error)
        why = ", which has none that can be read" if reason.endswith(":") else f": {reason}"
        raise refused_code(error, "trust_remote_code", name, revision) or UserError(
            "name_or_path", f"expected a folder or a hub id that holds a tokenizer, got {name_or_path!r}{why}{hint}"
        ) from error
    stops = _stops_of_model(tokenizer, name, revision) if gguf is None else ()
    setattr(tokenizer, _STOPS_ATTRIBUTE, stops)
    return tokenizer


def stop_tokens(tokenizer: Any) -> frozenset[str]:
    """Return the tokens that stop generation: the tokenizer's eos token, and those of the model's generation config."""
    return frozenset(filter(None, [tokenizer.eos_token, *getattr(tokenizer, _STOPS_ATTRIBUTE, ())]))


def _stops_of_model(tokenizer: Any, name: str, revision: str) -> tuple[str, ...]:
    """The stop tokens in the generation config next to the tokenizer; none without one."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
        texts = tokenizer.convert_ids_to_tokens(ids if isinstance(ids, list) else [] if ids is None else [ids])
    except OSError:
        return ()
    except Exception as error:  # what transformers raises for wrong contents has no common base class
        raise UserError(
            "name_or_path", f"the generation_config.json of {name!r} has wrong contents: {first_line(error)}"
        ) from error
    return tuple(text for text in texts if text)


def _base_of_adapters(name_or_path: str, revision: str | None) -> tuple[str, str | None] | None:
    """Name and revision of the base model, for adapters saved without a tokenizer."""
    from transformers.utils import cached_file

    from lit_probsft.storage.adapter_folder import adapters_at, read_config

    folder = adapters_at(name_or_path, revision)
    if folder is None:
        return None
    for file in ("tokenizer_config.json", "tokenizer.json"):
        with contextlib.suppress(OSError, ValueError):
            if cached_file(name_or_path, file, revision=revision or "main"):
                return None  # there is one, which could not be loaded
    config = read_config(folder, "name_or_path")
    base, base_revision = config.get("base_model_name_or_path"), config.get("revision")
    return None if not base or adapters_at(base, base_revision) else (base, base_revision)


@dataclass(frozen=True)
class ByteTokenizer(TokenizerSource):
    """Each byte is a token, with its value as id; 256 is `<|pad|>`, 257 `<|im_start|>`, 258 `<|im_end|>`.

    `<|im_end|>` ends turns and texts. Needs no file. The chat template is ChatML with generation marks.
    """

    @override
    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
        return _with_template(tokenizer, use_regex=False)


@dataclass(frozen=True)
class BPETokenizer(TokenizerSource):
    """Byte-level BPE trained on the training rows. The same rows give the same tokenizer.

    Args:
        vocab_size: most tokens, including the 256 bytes and 3 special tokens. Few rows give fewer.
    """

    vocab_size: int = 8192

    def __post_init__(self) -> None:
        if self.vocab_size < 259:
            raise UserError(
                "vocab_size", f"expected at least 259 (256 bytes and 3 special tokens), got {self.vocab_size}"
            )

    @property
    @override
    def learns(self) -> bool:
        return True

    @override
    def load(self, texts: Callable[[], Iterable[str]]) -> Any:
        from tokenizers import Tokenizer, pre_tokenizers
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer

        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[PAD, TURN_START, TURN_END],
            # Sorted, because ids follow this order, and the library's own differs between processes.
            initial_alphabet=sorted(_byte_characters()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts(), trainer=trainer)
        return _with_template(tokenizer, use_regex=True)


def as_tokenizer_source(value: Any) -> Any:
    """Return `PretrainedTokenizer(value)` for a string, and a loaded tokenizer or a source itself."""
    return PretrainedTokenizer(value) if isinstance(value, str) else value


def checked_tokenizer(tokenizer: Any, pad_token: str | None = None) -> Any:
    """Return `tokenizer` with a pad token set.

    By default this is the tokenizer's own, else a special token made for padding (`<pad>`,
    `<|finetune_right_pad_id|>` ...), else one that ends texts (`<|endoftext|>`), else its eos token. Training does not
    depend on the choice: padding is identified by position, and neither attended to nor supervised.

    Raises:
        UserError: it is not a fast tokenizer, `pad_token` is not in its vocabulary, or it has no token to pad with.
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
    """Return the texts of all special tokens, including those marked as special in the vocabulary only."""
    marked = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *marked]))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a digest of everything that determines the ids of a text and the ends of its turns."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
    digest.update(repr(sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())).encode())
    digest.update(repr(sorted(stop_tokens(tokenizer))).encode())
    return digest.hexdigest()


# Only a token for padding: Qwen's `<|vision_pad|>` and `<|fim_pad|>` have other uses.
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
        "the tokenizer has neither a pad token nor one that ends texts; name an existing token, such as "
        f"{candidates} (padding is masked)",
    )


def _pad_candidates(tokenizer: Any) -> list[str]:
    """Special tokens, the most likely pad tokens first."""
    names = special_tokens(tokenizer)
    wanted = ("pad", "unk", "reserved")
    return sorted(
        names, key=lambda name: next((i for i, part in enumerate(wanted) if part in name.lower()), len(wanted))
    )


def _byte_characters() -> list[str]:
    """The printable characters that stand for the byte values 0 to 255 in byte-level tokenizers."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


def _with_template(tokenizer: Any, *, use_regex: bool) -> Any:
    """A `tokenizers` model as byte-level transformers tokenizer with special tokens and chat template."""
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
