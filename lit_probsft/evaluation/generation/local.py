"""Generates answers with transformers in this process."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lit_probsft.data.tokens.tokenization import end_of_turn_id
from lit_probsft.errors import UserError
from lit_probsft.evaluation.generation.batch import Batch, Row, can_join
from lit_probsft.evaluation.generation.requests import Answer, Backend, Request
from lit_probsft.evaluation.generation.sampling import choose, uniform
from lit_probsft.model.generation import own_processors, report_unused, stop_tokens
from lit_probsft.model.modes import evaluation_mode

_ROOM = 128
"""Positions that a row should be able to grow by when it enters a batch."""
_WITHOUT_CACHE = {"recurrent_gemma", "reformer", "rwkv", "xlnet", "xlstm"}
"""Model types that keep states outside of transformers' `Cache`. Each token is computed from the whole text again."""


class LocalBackend(Backend):
    """Generates answers with a model in this process.

    Rows of a batch end at different times; waiting prompts take their place. The answers to one prompt share its
    prefill. Where memory runs out, the batch becomes smaller and its rows go on later.

    Args:
        model: a `PreTrainedModel`, on any devices. An objective head may be its output layer.
        tokenizer: decodes answers. Its end-of-text token, and the token that ends a turn in its chat template, end
            answers as well as those of the model's `generation_config`.
        top_p: share of the probability mass that is sampled from, above 0 and at most 1.
        keep_generation_config: apply the penalties and filters of the model's `generation_config`, such as
            `repetition_penalty` and `top_k`. Otherwise they are dropped, and named once. Temperature and `top_p` are
            always those of the call.
        synced: the model is sharded over the ranks of the default process group, and every rank calls `answer` at the
            same time, with requests of its own. All ranks then run the same number of forward passes.
        batch_tokens: the most positions in the cache of a batch, unless a single row is longer. By default 16384 on a
            CPU, 65536 with `synced`, where no rank can recover from running out of memory, else 262144.
        batch_rows: the most rows of a batch. By default 32 on a CPU, else 512.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        top_p: float = 1.0,
        keep_generation_config: bool = False,
        synced: bool = False,
        batch_tokens: int | None = None,
        batch_rows: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.top_p, self.synced = model, tokenizer, top_p, synced
        self.device = model.get_input_embeddings().weight.device
        if self.device.type == "meta":  # offloaded; the model moves its inputs itself
            self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        on_cpu = self.device.type == "cpu"
        self.batch_tokens = batch_tokens or (2**14 if on_cpu else 2**16 if synced else 2**18)
        self.batch_rows = batch_rows or (32 if on_cpu else 512)
        ends = [tokenizer.eos_token_id, end_of_turn_id(tokenizer)]
        self.stops = sorted({*stop_tokens(model), *(end for end in ends if end is not None)})
        self._penalties, self._filters = own_processors(model, self.device) if keep_generation_config else ({}, {})
        self._reported, self._warns = False, True
        self._takes = inspect.signature(model.forward).parameters
        self._caches = model.config.get_text_config().model_type not in _WITHOUT_CACHE
        self._joins = self._caches and can_join(self._new_cache())

    @override
    def describe(self) -> Mapping[str, Any]:
        return {
            "name": "transformers",
            "transformers": version("transformers"),
            "torch": torch.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "stop_tokens": self.tokenizer.convert_ids_to_tokens(self.stops),
            "kept": [*self._penalties, *self._filters],
        }

    @override
    @torch.no_grad()
    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """As in `Backend`. The longest prompts come first, so that memory runs out at once if it does.

        Raises:
            UserError: the model computes NaN.
            torch.OutOfMemoryError: not even a single answer fits.
        """
        rows = [Row(request, draw) for request in requests for draw in request.draws]
        if not self._reported:
            self._reported = True
            samples = any(row.draw.temperature > 0 for row in rows)
            report_unused(self.model, samples=samples, kept={**self._penalties, **self._filters})
        waiting, batch = _longest_first(rows), None
        with evaluation_mode(self.model):
            while waiting or batch is not None:
                rows = [*(batch.rows if batch else ()), *self._admit(waiting, batch)]
                try:
                    batch = self._advance(batch, rows)
                except (MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error) or self.synced or len(rows) == 1:
                        raise
                    batch = None
                if batch is None and any(row.finish_reason is None for row in rows):
                    self._shrink(rows)  # after the error is gone, which holds tensors
                running = set(batch.rows if batch else ())
                if left := [row for row in rows if row.finish_reason is None and row not in running]:
                    waiting = _longest_first([*left, *waiting])
                yield from (self._answer(row) for row in rows if row.finish_reason is not None)
            while self._any_rank_works(False):
                self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)

    def _admit(self, waiting: deque[Row], batch: Batch | None) -> list[Row]:
        """Take the rows that enter the batch next. A few free places are not worth a prefill."""
        running, width = (len(batch.rows), batch.width) if batch else (0, 0)
        full = max(running / self.batch_rows, running * (width + _ROOM) / self.batch_tokens)
        if running and (not self._joins or full > 0.75):
            return []
        new: list[Row] = []
        prompts: set[tuple[int, ...]] = set()
        while waiting and running + len(new) < self.batch_rows:
            row = waiting[0]
            width = max(width, row.length + min(_ROOM, row.request.max_new_tokens - len(row.tokens)))
            prompts.add(tuple(row.ids))
            # Prefill needs more memory for each position than the cache does.
            large = len(prompts) * new[0].length > self.batch_tokens / 4 if new and self._joins else False
            uneven = bool(new) and not self._joins and row.length != new[0].length
            if (running or new) and (large or uneven or (running + len(new) + 1) * width > self.batch_tokens):
                break
            new.append(waiting.popleft())
        return new

    def _advance(self, batch: Batch | None, rows: Sequence[Row]) -> Batch | None:
        """Add a token to each row, and compute the logits of the next ones.

        Args:
            batch: running, if any.
            rows: of the batch, then those that enter it.

        Returns:
            The batch without finished rows, and without those that no longer fit; None if no row is left.
        """
        if new := rows[len(batch.rows) if batch else 0 :]:
            batch = batch.join(self._prefill(new)) if batch else self._prefill(new)
        assert batch is not None
        self._add_tokens(batch)
        going = [index for index, row in enumerate(batch.rows) if row.finish_reason is None]
        if len(going) * (batch.width + 1) > self.batch_tokens:
            going = going[: max(1, self.batch_tokens // (batch.width + _ROOM))]
        if not going:
            return None
        if len(going) < len(rows):
            batch.keep(going)
        batch.width += 1
        ids = [row.ids if batch.cache is None else row.tokens[-1:] for row in batch.rows]
        batch.logits = self._forward(ids, [row.length for row in batch.rows], batch.cache, batch.width)
        return batch

    def _prefill(self, rows: Sequence[Row]) -> Batch:
        """Start a batch. Rows with the same ids share their computation."""
        places = {ids: place for place, ids in enumerate(dict.fromkeys(tuple(row.ids) for row in rows))}
        width, cache = max(map(len, places)), self._new_cache()
        padded = [[0] * (width - len(ids)) + list(ids) for ids in places]
        logits = self._forward(padded, [len(ids) for ids in places], cache, width)
        if len(places) < len(rows):
            index = torch.tensor([places[tuple(row.ids)] for row in rows], device=logits.device)
            logits = logits[index]
            if cache is not None:
                cache.reorder_cache(index)
        return Batch(list(rows), logits, cache, width)

    def _forward(self, ids: Sequence[Sequence[int]], lengths: Sequence[int], cache: Any, width: int) -> Tensor:
        """Logits (B, V) after the last position.

        Args:
            ids: (B, T), the last T positions.
            lengths: (B,) real positions of each row, on the right.
            cache: holds the positions before, and is extended; None without one.
            width: positions of the cache afterwards.
        """
        self._any_rank_works(True)
        options: dict[str, Any] = {"use_cache": self._caches}
        tokens = torch.tensor(ids, device=self.device)
        padding = width - torch.tensor(lengths, device=self.device).unsqueeze(1)
        positions = torch.arange(width, device=self.device) - padding
        if min(lengths) < width:
            options["attention_mask"] = (positions >= 0).long()
        if "position_ids" in self._takes:
            options["position_ids"] = positions[:, -tokens.shape[1] :].clamp(min=0)
        if "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        if self._caches:  # the name is another one before transformers 5.24
            options["cache" if "cache" in self._takes else "past_key_values"] = cache
        logits: Tensor = self.model(input_ids=tokens, **options).logits
        return logits[:, -1]

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config) if self._caches else None

    def _add_tokens(self, batch: Batch) -> None:
        rows, logits = batch.rows, batch.logits
        if logits.isnan().any():
            problem = f"expected logits, {type(self.model).__name__} computes NaN: its weights are damaged"
            raise UserError("model", f"{problem}, or too large for this precision")
        if self._penalties or self._filters:
            logits = torch.cat([self._processed(row, logits[place : place + 1]) for place, row in enumerate(rows)])
        numbers = [uniform(row.draw.seed, len(row.tokens)) for row in rows]
        chosen = choose(logits, [row.draw.temperature for row in rows], numbers, self.top_p)
        for row, token in zip(rows, chosen, strict=True):
            row.tokens.append(token)
            if token in self.stops:
                row.finish_reason = "stop"
            elif len(row.tokens) >= row.request.max_new_tokens:
                row.finish_reason = "length"

    def _processed(self, row: Row, logits: Tensor) -> Tensor:
        """A row's logits (1, V) after the model's own penalties and filters, which see the row without padding."""
        ids, logits = torch.tensor([row.ids], device=logits.device), logits.float()
        for penalty in self._penalties.values():
            logits = penalty(ids, logits)
        if temperature := row.draw.temperature:
            for keep in self._filters.values():
                logits = keep(ids, logits / temperature) * temperature
        return logits

    def _answer(self, row: Row) -> Answer:
        text = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        assert row.finish_reason is not None
        return Answer(row.request.index, row.draw.sample, text, len(row.tokens), row.finish_reason)

    def _shrink(self, rows: Sequence[Row]) -> None:
        """Make batches smaller than one of these rows, which did not fit into memory."""
        if self._warns:
            self._warns = False
            rank_zero_info(f"out of memory with {len(rows)} answers at once; going on with smaller batches")
        self.batch_tokens = min(self.batch_tokens, len(rows) * max(row.length for row in rows)) // 2
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()

    def _any_rank_works(self, this: bool) -> bool:
        """Whether any rank has a forward pass to run. Every rank asks before each of its own."""
        if not self.synced:
            return this
        works = torch.tensor(int(this), device=self.device)
        torch.distributed.all_reduce(works, torch.distributed.ReduceOp.MAX)
        return bool(works)


def _longest_first(rows: Sequence[Row]) -> deque[Row]:
    return deque(sorted(rows, key=lambda row: -row.length))  # stable: answers to one prompt stay together


def _out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU PyTorch raises a plain RuntimeError."""
    texts = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)
