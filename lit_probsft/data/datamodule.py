"""The LightningDataModule of instruction tuning: sources, tokenizer and options in, micro-batches out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from typing_extensions import override

from lit_probsft.data.arguments import LENGTH_POOL, SHUFFLE_BUFFER, check_arguments
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.plan import Plan
from lit_probsft.data.batches.reporting import report_overlap, report_prompts, report_split
from lit_probsft.data.batches.row_tokenizer import Outcome, Recipe
from lit_probsft.data.batches.store import Documents, TokenStore
from lit_probsft.data.batches.stream_checks import check_not_trained
from lit_probsft.data.batches.stream_plan import StreamPlan
from lit_probsft.data.batches.streaming import StreamLoader
from lit_probsft.data.plans import data_ranks, evaluation_plan, stream_plan, training_plan
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.template_options import validate_template_options
from lit_probsft.data.stages import Splits, watch_split
from lit_probsft.data.stream import check_and_report_stream, stream_loader
from lit_probsft.data.tokenized import TokenizedSplits
from lit_probsft.data.tokens.control_tokens import SpecialTokensInText
from lit_probsft.data.tokens.history import History
from lit_probsft.data.tokens.rendering import read_template
from lit_probsft.data.tokens.tokenization import Reasoning, Turns
from lit_probsft.data.tokens.tokenizers import TokenizerSource
from lit_probsft.errors import UserError
from lit_probsft.parallel.seeds import run_seed


class InstructionDataModule(LightningDataModule):
    """Conversations for fine-tuning: tokenized once, cached, and batched by length.

    Args:
        train: where the training rows come from: a `Source`, or text, which is short for `Rows(path=text)`.
        validation: rows to validate on during training.
        validation_fraction: in place of `validation`, the share of the training rows to hold out. The held-out rows
            depend on `seed` only.
        watch: other sets to validate on in addition to `validation`, by name (letters, digits, `_`, `-`, `.`): for
            example, abilities that the model may lose. Metrics are val/NAME/nll, val/NAME/mean_p and val/NAME/ece.
        test: rows for the `test` stage.
        predict: rows whose prompts are answered in the `predict` stage; they need no answers. By default the rows of
            `test`, or else of `validation`.
        tokenizer: a `TokenizerSource`, or text, which is short for `PretrainedTokenizer(text)`. From Python also a
            loaded tokenizer.
        add_tokens: texts that become one token each, such as `<think>`, unless the tokenizer knows them. The model's
            vocabulary grows if it has no room; each new row starts as the mean of the old rows.
        add_special_tokens: the same for control tokens, such as turn markers. Written answers leave them out.
        format: `chat` renders conversations with the chat template; `plain` writes prompt, response and end-of-text
            token.
        chat_template: a template file, or Jinja text, that replaces the tokenizer's own template.
        template_options: options of the chat template, such as `{enable_thinking: false}`. Those in a row's column
            `chat_template_kwargs` take precedence. The exported model's template has them as defaults.
        require_end_of_turn: refuse rows in which the end of an answer is not supervised.
        turns: supervise `all` turns of the assistant, or only the `first` or `last` of each conversation.
        reasoning: `learn` supervises `<think>...</think>` and `reasoning_content`, `mask` keeps them without
            supervision, and `drop` removes them from the text.
        special_tokens_in_text: what to do with control tokens inside the turns' texts, such as `<|im_end|>`: write them
            as ordinary `text`, `refuse` the row, or `keep` them as control tokens. Texts that no template renders keep
            theirs unless they are refused.
        rewritten_history: what to do where the template rewrites earlier turns once later turns follow (Qwen 3's drops
            their reasoning). `keep` supervises them as rewritten. `split` makes several documents of a conversation, as
            few as possible, in which each supervised turn is what the model has to write.
        on_bad_row: `error` stops at the first row that cannot be read or used. `skip` counts it, and lists it with the
            reason in `dropped_rows` (and fit in skipped.jsonl).
        max_length: the most tokens of a document.
        overflow: what to do with longer documents: `error`, `truncate` (cut off the end; drop the document if no answer
            is left) or `drop`. Truncated and dropped ones are counted, and dropped ones listed like skipped rows.
        duplicates: what to do with training documents that are also in the validation set, token by token: `keep`
            counts them, `remove` drops them from training.
        batch_size: documents per micro-batch on one rank. An optimizer step has this number times the trainer's
            `accumulate_grad_batches` times the number of processes.
        eval_batch_size: documents per micro-batch outside training; by default `batch_size`.
        packing: fill the rows of training with several documents each, up to `max_length` tokens; `batch_size` then
            counts rows. No document attends to another, and none is dropped or cut. Evaluation sorts by length instead.
        streaming: read the training rows while training, over and over again, from files too large to tokenize in
            advance or from the hub. The trainer's `max_steps` must say when to end.
        shuffle_buffer: rows of a stream that are shuffled, or packed, together. A resumed run tokenizes at most that
            many rows again. Rounded up to complete optimizer steps.
        length_pool: number of optimizer steps whose documents are sorted by length together (see `Plan`); 0 for none.
        seed: decides the order of training and the rows that are held out; None is the run's seed.
        num_workers: processes that prepare batches ahead. Batches are small arrays, so 0 is usually fastest. For a
            stream they read and tokenize; 1 or more keep the model from waiting.
        num_proc: processes that tokenize.
        cache_dir: folder for tokens; by default LIT_PROBSFT_CACHE from the environment, or else ~/.cache/lit_probsft.

    After `setup`:
        `tokenizer` (loaded; available before `setup` too), `report` (per split: rows, kept, dropped, truncated,
        skipped, split_rows, split_documents, rows with_control_tokens, with_reasoning and without_reasoning, unused
        columns, tokens, supervised_tokens, max_length, fingerprint; packs and share_full if packed; the sources of a
        mixture; in_validation for train; a stream's report grows while it is read, and has its passes), `dropped_rows`
        (per split, the rows that are dropped or skipped: row, document if the row is split, what, reason; the first ten
        thousand of a stream), `watched` (names of the watched sets), `fingerprint` (of the training tokens),
        `max_token_id`, `plan` and `num_windows` (optimizer steps per epoch).

    Raises:
        UserError: at construction if values are out of range; in `setup` if files, rows or templates are wrong.
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
        template_options: dict[str, Any] | None = None,
        require_end_of_turn: bool = True,
        turns: Turns = "all",
        reasoning: Reasoning = "learn",
        special_tokens_in_text: SpecialTokensInText = "text",
        rewritten_history: History = "keep",
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
        seed: int | None = None,
        num_workers: int = 0,
        num_proc: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        check_arguments(locals())
        super().__init__()
        self.watched, self.validation_fraction, self.seed = tuple(watch or ()), validation_fraction, run_seed(seed)
        self._splits = Splits(
            {"train": train, "validation": validation, "test": test, "predict": predict},
            watch or {},
            validation_fraction=validation_fraction,
            seed=self.seed,
            skips=on_bad_row == "skip",
        )
        recipe = Recipe(
            chat_template=read_template(chat_template),
            plain_text=format == "plain",
            require_end_of_turn=require_end_of_turn,
            max_length=max_length,
            overflow=overflow,
            turns=turns,
            reasoning=reasoning,
            template_options=validate_template_options(template_options, argument="data.template_options"),
            special_tokens_in_text=special_tokens_in_text,
            rewritten_history=rewritten_history,
            on_bad_row=on_bad_row,
        )
        self._tokenized = TokenizedSplits(
            self._splits,
            tokenizer,
            recipe,
            cache_dir,
            add_tokens=add_tokens,
            add_special_tokens=add_special_tokens,
            remove_duplicates=duplicates == "remove",
            num_proc=num_proc,
        )
        if streaming:
            check_not_trained(self._tokenized.tokenizer_source)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.max_length, self.overflow, self.duplicates, self.on_bad_row = max_length, overflow, duplicates, on_bad_row
        self.packing, self.length_pool, self.num_workers = packing, length_pool, num_workers
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self._streamed = {"train"} if streaming else set()
        self._plan: Plan | StreamPlan | None = None
        self.report: dict[str, dict[str, Any]] = {}
        self.dropped_rows: dict[str, list[dict[str, Any]]] = {}

    # Lightning's hooks.

    @override
    def prepare_data(self) -> None:
        """Tokenizes into the cache, in one process per machine, before the other processes read it."""
        stage = None if self.trainer is None else self.trainer.state.fn
        for name in self._splits.of_stage(stage):
            if name not in self._streamed:
                self.documents(name)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of `stage` (fit, validate, test or predict; None for all), and reports each of them once."""
        for name in self._splits.of_stage(stage):
            if name in self.report:
                continue
            if name in self._streamed:
                self.report[name] = check_and_report_stream(self, self._tokenized.row_tokenizer(name))
                self.dropped_rows[name] = []
                continue
            store = self.documents(name)
            plan = self.plan if name == "train" else None
            assert not isinstance(plan, StreamPlan)
            self.report[name] = report_split(name, store, self.sources_of(name), plan)
            if name == "train":
                report_prompts(name, store.meta, self._tokenized.row_tokenizer(name))
            self.dropped_rows[name] = store.meta["dropped_rows"]
        both = {"train", "validation"} <= self.report.keys() and not self.streaming
        if both and "in_validation" not in self.report["train"]:
            self.report["train"] |= report_overlap(self.documents("train"), self.documents("validation"))

    @override
    def train_dataloader(self) -> PlanLoader | StreamLoader:
        """This rank's micro-batches. The loader's state is part of checkpoints."""
        plan = self.plan
        overfit = 0 if self.trainer is None else self.trainer.overfit_batches  # type: ignore[attr-defined]
        if isinstance(plan, Plan):
            return self._loader(self.documents("train"), plan, fixed_epoch=overfit > 0)
        if overfit:
            raise UserError(
                "trainer.overfit_batches",
                f"expected 0 with data.streaming (a source's `limit` does the same), got {overfit}",
            )
        validation = self.documents("validation") if "validation" in self._splits else None
        return stream_loader(self, self._tokenized.row_tokenizer("train"), plan, validation)

    @override
    def val_dataloader(self) -> Any:
        """Every validation document, once. With `watch`, a list: `validation`, then watched sets. [] without rows."""
        if "validation" not in self._splits:
            return []
        loaders = [self.loader_over(self.documents(name)) for name in ("validation", *map(watch_split, self.watched))]
        return loaders if self.watched else loaders[0]

    @override
    def test_dataloader(self) -> PlanLoader:
        return self.loader_over(self.documents("test"))

    @override
    def predict_dataloader(self) -> PlanLoader:
        """Prompts, padded on the left. `documents` in a batch are the indices that `prediction_row` takes."""
        return self.loader_over(self.documents("predict"), prompts=True)

    # What a run asks for.

    @property
    def tokenizer(self) -> Any:
        """The loaded tokenizer, a `PreTrainedTokenizerFast` with a pad token."""
        return self._tokenized.tokenizer

    @property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an answer, where generation must stop; None if the data's answers have no end."""
        return self._tokenized.end_of_turn_id

    @property
    def fingerprint(self) -> str | None:
        """A digest of the training set's ids and masks, or of a stream's sources and options; None without training."""
        return self.report["train"]["fingerprint"] if "train" in self.report else None

    @property
    def max_token_id(self) -> int:
        """The largest id in all splits that are set up. The model's vocabulary must be larger."""
        return max((store.meta["max_token_id"] for store in self._tokenized.stores.values()), default=-1)

    @property
    def plan(self) -> Plan | StreamPlan:
        """The order of training for the attached trainer; without one, for one process and no accumulation."""
        world_size, _ = data_ranks(self.trainer)
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        if self._plan is None or (self._plan.accumulate, self._plan.world_size) != (accumulate, world_size):
            if self.streaming:
                self._plan = stream_plan(self, accumulate, world_size)
            else:
                self._plan = training_plan(self, self._splits["train"].loaded, accumulate, world_size)
        return self._plan

    @property
    def num_windows(self) -> int:
        """Optimizer steps in an epoch; for a stream, in the run."""
        steps = self.plan.num_windows
        if steps is None:
            problem = "expected a trainer with max_steps, since a stream has no end; got no trainer"
            raise UserError("data.streaming", problem)
        return steps

    def sources_of(self, split: str) -> tuple[str, ...]:
        """Returns the names of the split's sources; empty if it has only one, or does not exist."""
        return self._splits[split].loaded.source.parts if split in self._splits else ()

    def documents(self, split: str) -> TokenStore:
        """Returns the tokenized documents of a split (`watch.NAME` for a watched set), but not of a stream."""
        trainer = self.trainer
        return self._tokenized.store(
            split,
            progress=trainer is None or trainer.is_global_zero,
            contents=trainer is None or trainer.local_rank == 0,  # one process of a machine reads it all
        )

    def loader_over(self, documents: Documents, *, prompts: bool = False) -> PlanLoader:
        """Returns a loader of this rank's micro-batches: each document once, in a row of its own, sorted by length.

        Args:
            documents: all documents of a split, or some of them.
            prompts: pad on the left, for generation.
        """
        plan = evaluation_plan(self, documents, data_ranks(self.trainer)[0])
        return self._loader(documents, plan, prompts=prompts, fixed_epoch=True)

    def locate(self, split: str, row: int) -> tuple[int, int]:
        """Returns the part of a split's source that has row `row`, and the index of the row in that part."""
        return self._splits[split].loaded.locate(row)

    def describe(self) -> dict[str, Any]:
        """Returns sources and options as plain data, for the record of a run."""
        names = ("validation_fraction", "packing", "batch_size", "eval_batch_size", "seed")
        options = {name: getattr(self, name) for name in names}
        return {**self._tokenized.describe(), **options, "stream": self.shuffle_buffer if self.streaming else None}

    def commits(self) -> dict[str, str]:
        """Returns the hub commits of the tokenizer and of the data, by argument."""
        return self._tokenized.commits()

    def prediction_row(self, document: int) -> dict[str, Any]:
        """Describes the row of a document of the predict stage: `index`, `prompt` (the user's last turn), `reference`
        (the answer in the data, or None), `source` if there are several, and `task_id` if the row has that column."""
        return self._tokenized.prediction_row(int(self.documents("predict").rows[document]))

    def inspect(self, name: str, most: int) -> tuple[int | None, list[int], Iterator[list[Outcome]]]:
        """Tokenizes at most `most` rows of a split without the cache; see `TokenizedSplits.inspect`."""
        return self._tokenized.inspect(name, most, streaming=name in self._streamed)

    # Internals.

    def _loader(self, documents: Documents, plan: Plan, *, fixed_epoch: bool, prompts: bool = False) -> PlanLoader:
        return PlanLoader(
            documents,
            plan,
            rank=data_ranks(self.trainer)[1],
            pad_token_id=self.tokenizer.pad_token_id,
            prompts=prompts,
            num_workers=self.num_workers,
            fixed_epoch=fixed_epoch,
        )
