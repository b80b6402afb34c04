"""Reports what happened to the rows of a split: in the log, and as data for the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_probsft.data.batches.duplicates import overlap
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import Plan
from lit_probsft.data.batches.row_tokenizer import RowTokenizer
from lit_probsft.data.batches.store import TokenStore


def report_split(name: str, store: TokenStore, parts: Sequence[str], plan: Plan | None) -> dict[str, Any]:
    """Logs what is kept, dropped and skipped of split `name`, and returns it for the record.

    Args:
        name: of the split.
        store: its documents.
        parts: names of the source's parts, if it has several.
        plan: the order of training, if the split is trained on.
    """
    meta = store.meta
    of, unit = ("documents of", "document") if meta["split_rows"] else ("of", "row")
    rank_zero_info(
        f"data.{name}: {meta['kept']} {of} {meta['rows']} rows ({meta['dropped']} dropped, {meta['truncated']} "
        f"truncated, {meta['skipped']} skipped), {meta['tokens']} tokens, {meta['supervised_tokens']} of them "
        f"supervised; the longest {unit} has {meta['max_length']}"
    )
    report_split_rows(name, meta)
    report = {key: value for key, value in meta.items() if key not in ("max_token_id", "dropped_rows", "sources")}
    if store.sources is not None:
        report["sources"] = _report_sources(name, store, parts, plan)
    if isinstance(plan, PackedPlan):
        rank_zero_info(
            f"data.packing: {plan.num_rows} packs of {plan.max_length} tokens, {plan.share_full:.2%} full, "
            f"{len(plan.lengths) / plan.num_rows:.1f} documents in each"
        )
        report |= {"packs": plan.num_rows, "share_full": plan.share_full}
    warn_skipped(name, meta["dropped_rows"])
    warn_control_tokens(name, meta["with_control_tokens"], meta["rows"])
    report_unused(name, meta["unused"])
    return report


def report_split_rows(name: str, counts: Mapping[str, Any], first: str = "") -> None:
    """Logs how many of the rows (the `first` ones) are split into how many documents, if any are."""
    if counts["split_rows"]:
        rank_zero_info(
            f"data.{name}: {counts['split_rows']} of {first}{counts['rows']} rows are split into "
            f"{counts['split_documents']} documents, because the chat template rewrites earlier turns"
        )


def _report_sources(name: str, store: TokenStore, parts: Sequence[str], plan: Plan | None) -> dict[str, Any]:
    """Logs the documents and tokens of each source of a mixture, and how often an epoch shows them."""
    quotas = None if plan is None or plan.sampler is None else plan.sampler.quotas
    assert store.sources is not None
    report: dict[str, Any] = {}
    for source, part in enumerate(parts):
        of_source = store.sources == source
        kept = int(of_source.sum())
        tokens = {"tokens": store.lengths, "supervised_tokens": store.supervised}
        report[part] = {"kept": kept, **{key: int(values[of_source].sum()) for key, values in tokens.items()}}
        line = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in report[part].items())
        if quotas is not None and kept:
            times = quotas[source] / kept
            report[part] |= {"documents_per_epoch": quotas[source], "times_per_epoch": times}
            line += f"; an epoch visits {quotas[source]} documents, each {times:.3g} times"
        rank_zero_info(f"data.{name}.sources.{part}: {line}")
        if not kept:
            rank_zero_warn(f"data.{name}.sources.{part}: no document is left")
    return report


def warn_skipped(name: str, dropped_rows: Sequence[dict[str, Any]]) -> None:
    """Warns of the first three skipped rows, with the reasons."""
    for row in [row for row in dropped_rows if row["what"] == "skipped"][:3]:
        rank_zero_warn(f"data.{name}: skipped: {row['reason']}")


def warn_control_tokens(name: str, number: int, rows: int) -> None:
    """Warns of rows whose texts contain control tokens, if there are any."""
    if number:
        rank_zero_warn(
            f"data.{name}: {number} of {rows} rows contain control tokens in their text, written as ordinary text; "
            "`data.special_tokens_in_text: keep` keeps them"
        )


def report_prompts(name: str, counts: Mapping[str, Any], row_tokenizer: RowTokenizer) -> None:
    """Logs that prompts for unknown answers differ from those in training, if all rows have reasoning or none has.

    Args:
        name: of the split.
        counts: of its rows.
        row_tokenizer: of its rows.
    """
    reasons = counts["with_reasoning"] > 0
    if reasons == (counts["without_reasoning"] > 0):  # both kinds, or no conversation
        return
    if option := row_tokenizer.option_of_prompts(reasons=reasons):
        rank_zero_info(
            f"data.{name}: {'every' if reasons else 'no'} row has reasoning, so all are prompted with `{option}`. "
            "Prompts without a known answer, as in chat, do not have this option unless `data.template_options: "
            f"{{{option}}}` is set in training"
        )


def report_unused(name: str, unused: Sequence[str]) -> None:
    """Logs the columns and keys of turns that nothing reads."""
    if unused:
        more = f" and {len(unused) - 20} more" if len(unused) > 20 else ""
        rank_zero_info(f"data.{name}: not used: {', '.join(unused[:20])}{more}")


def report_overlap(train: TokenStore, validation: TokenStore) -> dict[str, Any]:
    """Counts the training documents that are also in the validation set, and warns of them."""
    common = overlap(train, validation)
    if common:
        rank_zero_warn(
            f"data.train: {common} documents are in data.validation too, so val/nll partly measures documents that are "
            "trained on; `data.duplicates: remove` drops them from training"
        )
    return {"in_validation": common}
