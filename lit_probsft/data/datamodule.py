"""The data of a run: sources, tokenizer and options in, micro-batches out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.data.arguments import LENGTH_POOL, SHUFFLE_BUFFER, check_arguments
from lit_probsft.data.batches.blocks import BlockReader
from lit_probsft.data.batches.cache import cached_store, cached_tokenizer, digests
from lit_probsft.data.batches.epoch_sampling import EpochSampler
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import Plan
from lit_probsft.data.batches.prepare import Outcome, Recipe, RowTokenizer
from lit_probsft.data.batches.reporting import (
    report_overlap,
    report_packs,
    report_skipped,
    report_sources,
    report_split,
)
from lit_probsft.data.batches.store import Documents, TokenStore
from lit_probsft.data.batches.stream_checks import check_beginning, first_rows, stream_fingerprint, unread
from lit_probsft.data.batches.streaming import StreamLoader, StreamPlan
from lit_probsft.data.rows.formats import Conversation
from lit_probsft.data.rows.row_source import as_source
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.splits import LoadedSource, Split
from lit_probsft.data.tokens.added_tokens import check_added_tokens, with_added_tokens
from lit_probsft.data.tokens.rendering import plain_template, read_template
from lit_probsft.data.tokens.tokenization import IGNORED, Reasoning, Turns, tokenize_conversation
from lit_probsft.data.tokens.tokenizers import TokenizerSource, as_tokenizer_source, checked_tokenizer
from lit_probsft.errors import UserError

_STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}

_WATCHED_IN = ("fit", "validate")


def watch_split(name: str) -> str:
    """The split of a watched set: what its rows, counts and errors are listed under."""
    return f"watch.{name}"


class InstructionDataModule(LightningDataModule):
    """Conversations to fine-tune on, tokenized once, planned by length.

    Args:
        train: where the training rows come from: a `Source`, or a text that stands for `Rows(path=text)`.
        validation: rows to watch during training.
        validation_fraction: in place of `validation`, the share of the training rows to hold out; which ones depends on
            `seed` alone.
        watch: other sets to validate on beside `validation`, by name (letters, digits, `_`, `-`, `.`): what training
            makes the model forget, or learn along. Metrics are val/NAME/nll, val/NAME/mean_p and val/NAME/ece.
        test: rows for the `test` stage.
        predict: rows whose prompts are answered in the `predict` stage, which need no answers themselves; by default
            those of `test`, else of validation.
        tokenizer: a `TokenizerSource`; a text stands for `PretrainedTokenizer(text)`. From Python also a loaded
            tokenizer.
        add_tokens: texts that become one token each, such as `<think>`, where the tokenizer does not know them. The
            model's vocabulary grows where it has no room, and each new row begins as the mean of the old ones.
        add_special_tokens: the same for control tokens, such as marks of turns: left out when an answer is written.
        format: `chat` renders by the chat template; `plain` writes prompt, response and end-of-text token.
        chat_template: a template file, or Jinja text, in place of the tokenizer's own.
        require_end_of_turn: refuse rows in which the end of an answer would not be learnt.
        turns: learn `all` turns of the assistant, or only the `first` or `last` of each conversation.
        reasoning: `learn` what stands in `<think>...</think>` and `reasoning_content`, `mask` it, or `drop` it from the
            text.
        on_bad_row: `error` stops at the first row that cannot be read or used; `skip` goes on, counts it, and lists it
            with its reason in `dropped_rows` (and fit in skipped.jsonl).
        max_length: most tokens of a document.
        overflow: what becomes of a longer one: `error`, `truncate` (its end is cut off; dropped when no answer is
            left), or `drop`. Both are counted and reported, dropped ones listed as skipped ones are.
        duplicates: training documents that are in the validation set too, token by token, are counted (`keep`), or
            left out of training as well (`remove`).
        batch_size: documents per micro-batch on one rank; with the trainer's `accumulate_grad_batches` and its number
            of processes it makes the documents of an optimizer step.
        eval_batch_size: the same outside training; by default `batch_size`.
        packing: fill the rows of training with several documents each, up to `max_length` tokens; `batch_size` then
            counts rows. No document sees another, and nothing is lost or cut. Evaluation sorts by length instead.
        streaming: read the training rows as they are needed, over and over again, from files too large to be tokenized
            beforehand or from the hub. The trainer's `max_steps` must say when to end.
        shuffle_buffer: rows of a stream that are shuffled, or packed, together; a run that resumes tokenizes at most so
            many anew. Rounded up to whole optimizer steps.
        length_pool: optimizer steps whose documents are sorted by length together (see `Plan`); 0 for none.
        seed: of the order of training and of what is held out.
        num_workers: processes that prepare batches ahead; batches are small arrays, and 0 is usually quickest. For a
            stream they read and tokenize, and 1 or more keep the model from waiting.
        num_proc: processes that tokenize.
        cache_dir: where tokens are kept; by default the environment's LIT_PROBSFT_CACHE, else ~/.cache/lit_probsft.

    After `setup`:
        `tokenizer` (loaded; this one works before `setup` too), `report` (per split: rows, kept, dropped, truncated,
        skipped, tokens, supervised_tokens, max_length, fingerprint; packs and share_full where it is packed; sources of
        a mixture; for train also in_validation; that of a stream grows while it is read, and has its passes),
        `dropped_rows` (per split, the rows that were dropped or skipped: row, what, reason; of a stream the first ten
        thousand),
        `fingerprint` (of the training tokens), `max_token_id`, `plan` and `num_windows` (optimizer steps per epoch).

    Raises:
        UserError: at construction for values out of range, at `setup` for what is wrong with files, rows or templates.
    """

    def __init__(
        self,
        train: Source | str | None = None,
        validation: Source | str | None = None,
        validation_fraction: float = 0.0,
        watch: dict[str, Source | str] | None = None,
        test: Source | str | None = None,
        predict: Source | str | None = None,
        tokenizer: TokenizerSource | str | None = None,
        add_tokens: list[str] | None = None,
        add_special_tokens: list[str] | None = None,
        format: Literal["chat", "plain"] = "chat",
        chat_template: str | None = None,
        require_end_of_turn: bool = True,
        turns: Turns = "all",
        reasoning: Reasoning = "learn",
        on_bad_row: Literal["error", "skip"] = "error",
        max_length: int | None = None,
        overflow: Literal["error", "truncate", "drop"] = "error",
        duplicates: Literal["keep", "remove"] = "keep",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        packing: bool = False,
        streaming: bool = False,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        length_pool: int = LENGTH_POOL,
        seed: int = 0,
        num_workers: int = 0,
        num_proc: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        check_arguments(locals())
        super().__init__()
        check_added_tokens(add_tokens or (), add_special_tokens or ())
        self._splits: dict[str, Split] = {}
        for name, value in (("train", train), ("validation", validation), ("test", test), ("predict", predict)):
            if value is not None:
                source = as_source(value).for_prediction() if name == "predict" else as_source(value)
                self._splits[name] = Split(LoadedSource(source, name, skips=on_bad_row == "skip"))
        if validation_fraction:
            rows = self._splits["train"].loaded
            self._splits["train"] = Split(rows, "kept", validation_fraction, seed)
            self._splits["validation"] = Split(rows, "held_out", validation_fraction, seed)
        self.watched = tuple(watch or ())
        """Names of the other sets that are validated on."""
        for name, value in (watch or {}).items():
            argument = watch_split(name)
            self._splits[argument] = Split(LoadedSource(as_source(value), argument, skips=on_bad_row == "skip"))
        if predict is None and (fallback := self._splits.get("test") or self._splits.get("validation")):
            self._splits["predict"] = fallback
        self.validation_fraction, self.seed = validation_fraction, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.max_length, self.overflow = max_length, overflow
        self.packing, self.length_pool = packing, length_pool
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.num_workers, self.num_proc = num_workers, num_proc
        self._recipe = Recipe(
            chat_template=read_template(chat_template),
            plain_text=format == "plain",
            require_end_of_turn=require_end_of_turn,
            max_length=max_length,
            overflow=overflow,
            turns=turns,
            reasoning=reasoning,
            on_bad_row=on_bad_row,
        )
        self.duplicates, self.on_bad_row = duplicates, on_bad_row
        self._cache = Path(cache_dir or os.environ.get("LIT_PROBSFT_CACHE") or "~/.cache/lit_probsft").expanduser()
        self._tokenizer_source = as_tokenizer_source(tokenizer)
        self.add_tokens, self.add_special_tokens = tuple(add_tokens or ()), tuple(add_special_tokens or ())
        if streaming and getattr(self._tokenizer_source, "learns", False):
            raise UserError(
                "data.tokenizer",
                "expected one that is there already with data.streaming, got "
                f"{type(self._tokenizer_source).__name__}, which learns from the training rows",
            )
        self._tokenizer: Any = None
        self._stores: dict[str, TokenStore] = {}
        self._plan: Plan | StreamPlan | None = None
        self.report: dict[str, dict[str, Any]] = {}
        self.dropped_rows: dict[str, list[dict[str, Any]]] = {}

    # What a run asks for.

    @property
    def tokenizer(self) -> Any:
        """The loaded tokenizer, a `PreTrainedTokenizerFast` with a pad token."""
        if self._tokenizer is None:
            try:
                self._tokenizer = with_added_tokens(self._load_tokenizer(), self.add_tokens, self.add_special_tokens)
                if self._recipe.chat_template is not None:  # so that whoever saves the tokenizer saves what was trained
                    self._tokenizer.chat_template = self._recipe.chat_template
                elif self._recipe.plain_text and self._tokenizer.eos_token is not None:
                    self._tokenizer.chat_template = plain_template(self._tokenizer)
            except UserError as error:
                raise error if error.argument.startswith("data.") else error.within("data.tokenizer") from error
        return self._tokenizer

    @property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an answer, which generation has to stop at; None where the data's answers have no end."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            labels = tokenize_conversation(self.tokenizer, messages, plain_text=self._recipe.plain_text)["labels"]
        except UserError:
            return None
        return next(label for label in reversed(labels) if label != IGNORED)

    @property
    def fingerprint(self) -> str | None:
        """A digest of the training set's ids and masks, in their order; of a stream, of what it is made of. None when
        this stage has no training set."""
        if "train" in self.report and self.streaming:
            return str(self.report["train"]["fingerprint"])
        store = self._stores.get("train")
        return None if store is None else str(store.meta["fingerprint"])

    @property
    def max_token_id(self) -> int:
        """The largest id in any split that is set up: a model's vocabulary must be larger."""
        return max((store.meta["max_token_id"] for store in self._stores.values()), default=-1)

    @property
    def plan(self) -> Plan | StreamPlan:
        """The order of training, for the trainer this is attached to (one process, no accumulation, without one)."""
        world_size, _ = self._ranks()
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        if self._plan is None or (self._plan.accumulate, self._plan.world_size) != (accumulate, world_size):
            options: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed}
            options |= {"accumulate": accumulate, "world_size": world_size}
            if self.streaming:
                self._plan = StreamPlan(
                    **options,
                    pool=self.length_pool,
                    max_length=self.max_length if self.packing else None,
                    buffer=self.shuffle_buffer,
                    num_windows=None if self.trainer is None else self.trainer.max_steps,
                )
                return self._plan
            store = self._store("train")
            options["sampler"] = self._epoch_sampler()
            if self.packing:
                assert self.max_length is not None
                self._plan = PackedPlan(store.lengths, store.supervised, max_length=self.max_length, **options)
            else:
                self._plan = Plan(store.lengths, store.supervised, pool=self.length_pool, **options)
        return self._plan

    @property
    def num_windows(self) -> int:
        """Optimizer steps in an epoch; of a stream, in the run."""
        steps = self.plan.num_windows
        if steps is None:
            raise UserError(
                "data.streaming", "expected a trainer with max_steps, since a stream has no end; got no trainer"
            )
        return steps

    def sources_of(self, split: str) -> tuple[str, ...]:
        """Names of the sources that split `split` is made of; empty when it has one, or is not there."""
        return self._splits[split].loaded.source.parts if split in self._splits else ()

    def documents(self, split: str) -> TokenStore:
        """The tokenized documents of split `split` (`watch.NAME` for a set that is watched), not of a stream."""
        return self._store(split)

    def loader_over(self, documents: Documents, *, prompts: bool = False) -> PlanLoader:
        """This rank's micro-batches of some documents, each once and in a row of its own, by length.

        Args:
            documents: of a split, or some of them.
            prompts: padded on the left, for generation.
        """
        world_size, rank = self._ranks()
        return PlanLoader(
            documents,
            Plan(
                documents.lengths,
                documents.supervised,
                batch_size=self.eval_batch_size,
                world_size=world_size,
                seed=self.seed,
                shuffle=False,
            ),
            rank=rank,
            pad_token_id=self.tokenizer.pad_token_id,
            prompts=prompts,
            num_workers=self.num_workers,
            fixed_epoch=True,
        )

    def locate(self, split: str, row: int) -> tuple[int, int]:
        """Which part of a split's source row `row` is of, and which of that part's rows it is."""
        return self._split(split).loaded.locate(row)

    def describe(self) -> dict[str, Any]:
        """Sources and options as plain data, for the record of a run."""
        tokenizer = self._tokenizer_source
        named = (
            tokenizer.describe() if isinstance(tokenizer, TokenizerSource) else {"tokenizer": type(tokenizer).__name__}
        )
        return {
            **{name: {**split.loaded.source.describe(), "part": split.part} for name, split in self._splits.items()},
            "tokenizer": named,
            "added_tokens": [*self.add_tokens, *self.add_special_tokens],
            "recipe": asdict(self._recipe),
            **{
                name: getattr(self, name)
                for name in ("validation_fraction", "packing", "batch_size", "eval_batch_size", "seed")
            },
            "stream": self.shuffle_buffer if self.streaming else None,
        }

    def commits(self) -> dict[str, str]:
        """What was taken from the hub: the commits of the tokenizer and of the data, by their arguments."""
        tokenizer = getattr(self._tokenizer_source, "commit", None)
        found = {} if tokenizer is None else {"data.tokenizer": tokenizer}
        for split in self._splits.values():
            for part, commit in split.loaded.source.commits().items():
                found[f"data.{split.loaded.argument}{'.sources.' if part else ''}{part}"] = commit
        return found

    def prediction_row(self, document: int) -> dict[str, Any]:
        """What belongs to document `document` of the predict stage: `index` (its row), `prompt` (the last turn of the
        user), `reference` (the answer of the data, None where it has none), and `source` where there are several.
        """
        index = int(self._store("predict").rows[document])
        loaded = self._split("predict").loaded
        example = loaded.example(loaded.item(index))
        assert isinstance(example, Conversation)
        prompt = next(turn["content"] for turn in reversed(example.messages) if turn["role"] == "user")
        last = example.messages[-1]
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in last.get("tool_calls", [])]
        answer = "\n".join(filter(None, [last["content"], *calls])) if last["role"] == "assistant" else None
        source, place = loaded.locate(index)
        origin = {"source": loaded.source.parts[source]} if loaded.source.parts else {}
        return {
            **origin,
            "index": place,
            "prompt": prompt,
            "reference": answer,
        }

    def inspect(self, name: str, most: int) -> tuple[int | None, list[int], Iterator[Outcome]]:
        """What becomes of the rows of split `name`, without the cache; a row that cannot be read or used is lost for
        its reason whatever `on_bad_row` says.

        Args:
            name: of the split.
            most: so many rows are looked at, evenly spread.

        Returns:
            How many rows there are (None in a stream), which are looked at (in a stream the first), and what becomes of
            those.

        Raises:
            UserError: the source cannot be read at all, or no row could be rendered by the template.
        """
        split = self._split(name)
        split = replace(split, loaded=LoadedSource(split.loaded.source, split.loaded.argument, skips=True))
        recipe = replace(self._recipe, on_bad_row="skip", prompts=name == "predict")
        row_tokenizer = RowTokenizer(split.loaded, self.tokenizer, recipe)
        row_tokenizer.check()
        if self.streaming and name == "train":
            items = first_rows(split.loaded, most)
            return None, list(range(len(items))), (row_tokenizer.of(item, row) for row, item in enumerate(items))
        indices = split.indices()
        step = max(len(indices) / most, 1.0)
        chosen = [indices[int(place * step)] for place in range(min(len(indices), most))]
        return len(indices), chosen, map(row_tokenizer.one, chosen)

    # Lightning's hooks.

    def prepare_data(self) -> None:
        """Tokenizes into the cache, in one process per machine, before the others read it."""
        stage = self.trainer.state.fn.value if self.trainer is not None and self.trainer.state.fn is not None else None
        for name in self._names(stage):
            if not (self.streaming and name == "train"):
                self._store(name)

    def setup(self, stage: str | None = None) -> None:
        """Opens what `stage` (fit, validate, test or predict; None for all there is) needs, and reports it once."""
        for name in self._names(stage):
            if name in self.report:
                continue
            if self.streaming and name == "train":
                self._begin_stream()
                continue
            store = self._store(name)
            self.report[name], self.dropped_rows[name] = report_split(name, store), store.meta["dropped_rows"]
            plan = self.plan if name == "train" else None
            self.report[name] |= report_sources(
                name, store, self.sources_of(name), plan if isinstance(plan, Plan) else None
            )
            if isinstance(plan, PackedPlan):
                self.report[name] |= report_packs(plan)
            report_skipped(name, store)
        watched = "train" in self.report and "validation" in self.report and not self.streaming
        if watched and "in_validation" not in self.report["train"]:
            self.report["train"] |= report_overlap(self._store("train"), self._store("validation"))

    def train_dataloader(self) -> PlanLoader | StreamLoader:
        """This rank's micro-batches; keeps its place in checkpoints."""
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        plan = self.plan
        if isinstance(plan, Plan):
            return PlanLoader(
                self._store("train"),
                plan,
                rank=self._ranks()[1],
                pad_token_id=self.tokenizer.pad_token_id,
                num_workers=self.num_workers,
                fixed_epoch=overfit,
            )
        if overfit:
            raise UserError(
                "trainer.overfit_batches", "expected 0 with data.streaming; a `limit` of rows does the same"
            )
        validation = self._store("validation") if "validation" in self._splits else None
        reader = BlockReader(
            RowTokenizer(unread(self._split("train").loaded), self.tokenizer, self._recipe),
            plan.block_size,
            known=frozenset() if validation is None else digests(validation),
            remove=self.duplicates == "remove",
        )
        return StreamLoader(
            reader,
            plan,
            rank=self._ranks()[1],
            pad_token_id=self.tokenizer.pad_token_id,
            num_workers=self.num_workers,
            report=self.report["train"],
            dropped_rows=self.dropped_rows["train"],
            check=self._check_fits,
        )

    def val_dataloader(self) -> Any:
        """Micro-batches of every validation document, once; with `watch` a list of such, one for each set behind that
        of validation; an empty list without validation rows."""
        if "validation" not in self._splits:
            return []
        loader = self.loader_over(self._store("validation"))
        others = [self.loader_over(self._store(watch_split(name))) for name in self.watched]
        return [loader, *others] if others else loader

    def test_dataloader(self) -> PlanLoader:
        """Micro-batches of every test document, once."""
        return self.loader_over(self._store("test"))

    def predict_dataloader(self) -> PlanLoader:
        """Prompts, padded on the left; `documents` says whose (see `prediction_row`)."""
        return self.loader_over(self._store("predict"), prompts=True)

    # How it comes about.

    def _names(self, stage: str | None) -> list[str]:
        if stage is None:
            return list(self._splits)
        first, *others = _STAGES[stage]
        if stage in _WATCHED_IN:
            others += map(watch_split, self.watched)
        self._split(first)
        return [first, *(name for name in others if name in self._splits)]

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            also = {"validation": " or data.validation_fraction", "predict": ", data.test or data.validation"}.get(
                name, ""
            )
            raise UserError(f"data.{name}", f"expected a source of rows (a file, say){also}, got none")
        return self._splits[name]

    def _ranks(self) -> tuple[int, int]:
        """How many ranks see different data, and which of them this is."""
        if self.trainer is None:
            return 1, 0
        try:  # ranks that share a replica of the model share its data
            kwargs = self.trainer.strategy.distributed_sampler_kwargs  # type: ignore[attr-defined]
        except (AttributeError, AssertionError):  # one device, or processes not set up yet
            return self.trainer.world_size, self.trainer.global_rank
        return int(kwargs["num_replicas"]), int(kwargs["rank"])

    def _begin_stream(self) -> None:
        """Refuse a stream that cannot be trained on, by its first rows, before a model is loaded."""
        if self.trainer is not None and self.trainer.max_steps < 1:
            raise UserError(
                "trainer.max_steps",
                "expected the number of optimizer steps with data.streaming, since a stream has no "
                f"end, got {self.trainer.max_steps}",
            )
        row_tokenizer = RowTokenizer(unread(self._split("train").loaded), self.tokenizer, self._recipe)
        check_beginning(row_tokenizer)
        names = ("validation_fraction", "seed", "shuffle_buffer", "duplicates")
        fingerprint = stream_fingerprint(row_tokenizer, {name: getattr(self, name) for name in names})
        self.report["train"], self.dropped_rows["train"] = {"stream": True, "fingerprint": fingerprint}, []
        rank_zero_info(f"data.train: a stream, shuffled in blocks of {self.plan.describe()['block_size']} rows")

    def _check_fits(self, largest: int, longest: int) -> None:
        """Ask the module whether ids and lengths are within what its model knows."""
        check = getattr(getattr(self.trainer, "lightning_module", None), "check_fits", None)
        if check is not None:
            check(largest, longest)

    def _epoch_sampler(self) -> EpochSampler | None:
        """Which documents an epoch of training sampler, where that is not each of them once."""
        store, loaded = self._store("train"), self._splits["train"].loaded
        if store.sources is None:
            return None
        parts = loaded.source.parts
        counts = dict(zip(parts, np.bincount(store.sources, minlength=len(parts)).tolist(), strict=True))
        try:
            quotas = loaded.source.quotas(counts)
        except UserError as error:
            raise error.within(f"data.{loaded.argument}") from error
        if all(quotas.get(part, 0) == counts[part] for part in parts):
            return None
        return EpochSampler(store.lengths, store.sources, [quotas.get(part, 0) for part in parts], seed=self.seed)

    def _load_tokenizer(self) -> Any:
        source = self._tokenizer_source
        if source is None:
            raise UserError("data.tokenizer", "expected a tokenizer (ByteTokenizer, or the name of a model), got none")
        if not isinstance(source, TokenizerSource):
            return checked_tokenizer(source)
        if not source.learns:
            return source.load(lambda: self._split("train").texts())
        return cached_tokenizer(self._cache, source, self._split("train"))

    def _store(self, name: str) -> TokenStore:
        if name not in self._stores:
            recipe = replace(self._recipe, prompts=True, max_length=None) if name == "predict" else self._recipe
            shown = self.trainer is None or self.trainer.is_global_zero
            clean = name == "train" and self.duplicates == "remove" and "validation" in self._splits
            self._stores[name] = cached_store(
                self._cache,
                self._split(name),
                self.tokenizer,
                recipe,
                without=self._store("validation") if clean else None,
                num_proc=self.num_proc,
                progress=shown,
            )
        return self._stores[name]
