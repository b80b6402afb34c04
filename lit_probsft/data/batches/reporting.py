"""What became of the rows of a run, in its record and in a few lines."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_probsft.data.batches.cache import overlap
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import Plan
from lit_probsft.data.batches.store import TokenStore


def report_split(name: str, store: TokenStore) -> dict[str, Any]:
    """Say what was kept, dropped and skipped of split `name`; returns it for the record."""
    meta = store.meta
    rank_zero_info(
        f"data.{name}: {meta['kept']} of {meta['rows']} rows ({meta['dropped']} dropped, {meta['truncated']} "
        f"truncated, {meta['skipped']} skipped), {meta['tokens']} tokens, {meta['supervised_tokens']} of them "
        f"supervised, at most {meta['max_length']} in a row"
    )
    return {key: value for key, value in meta.items() if key not in ("max_token_id", "dropped_rows", "sources")}


def report_sources(name: str, store: TokenStore, parts: tuple[str, ...], plan: Plan | None) -> dict[str, Any]:
    """What came of each source of a mixture, and how often training will see it.

    Args:
        name: of the split.
        store: its documents.
        parts: names of its sources; without several there is nothing to say.
        plan: the order of training, where the split is trained on.
    """
    if store.sources is None:
        return {}
    places = None if plan is None or plan.sampler is None else plan.sampler.quotas
    report: dict[str, Any] = {}
    for source, part in enumerate(parts):
        chosen = store.sources == source
        kept = int(chosen.sum())
        facts = {"kept": kept, "tokens": int(store.lengths[chosen].sum())}
        report[part] = {**facts, "supervised_tokens": int(store.supervised[chosen].sum())}
        told = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in report[part].items())
        if places is not None and kept:
            times = places[source] / kept
            report[part] |= {"documents_per_epoch": places[source], "times_per_epoch": times}
            told += f"; an epoch sampler {places[source]} documents, each {times:.3g} times"
        rank_zero_info(f"data.{name}.sources.{part}: {told}")
        if not kept:
            rank_zero_warn(f"data.{name}.sources.{part}: no document is left")
    return {"sources": report}


def report_packs(plan: PackedPlan) -> dict[str, Any]:
    """How many packs there are, and how full."""
    rank_zero_info(
        f"data.packing: {plan.num_rows} packs of {plan.max_length} tokens, {plan.share_full:.2%} full, "
        f"{len(plan.lengths) / plan.num_rows:.1f} documents in each"
    )
    return {"packs": plan.num_rows, "share_full": plan.share_full}


def report_skipped(name: str, store: TokenStore) -> None:
    """The first rows that could not be used, each with its reason."""
    for loss in [loss for loss in store.meta["dropped_rows"] if loss["what"] == "skipped"][:3]:
        rank_zero_warn(f"data.{name}: skipped: {loss['reason']}")


def report_overlap(train: TokenStore, validation: TokenStore) -> dict[str, Any]:
    """How many training documents are in the validation set, token by token."""
    common = overlap(train, validation)
    if common:
        rank_zero_warn(
            f"data.train: {common} documents are in data.validation too, so that val/nll is partly of what is "
            "trained on; `data.duplicates: remove` leaves them out of training"
        )
    return {"in_validation": common}
