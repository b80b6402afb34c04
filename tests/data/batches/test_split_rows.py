"""With `rewritten_history: split`, one row gives several documents, and each of them is counted and visited once."""

from collections import Counter
from dataclasses import replace

import pytest

from lit_probsft.cli.preview import html_page, make_preview
from lit_probsft.data import ByteTokenizer, InstructionDataModule, Mixture, Part, Rows
from lit_probsft.data.batches.blocks import merge_blocks
from lit_probsft.data.batches.row_tokenizer import Recipe, RowTokenizer
from lit_probsft.data.batches.stream_plan import StreamPlan
from lit_probsft.data.batches.streaming import StreamLoader
from lit_probsft.data.rows.splits import LoadedSource
from lit_probsft.training.probing import training_documents
from tests.data.chat_templates import CHATML, DROPS_REASONING

DOCUMENTS = [1, 3, 2, 1, 2, 1, 1, 3]
"""Documents of each row."""


def turn(row, number):
    thought = "" if row in (3, 5) else f"<think>{number}</think>"  # nothing to rewrite in these
    return [{"role": "user", "content": f"{row}?"}, {"role": "assistant", "content": f"{thought}{row}.{number}"}]


ROWS = [
    {"messages": [m for number in range(count if row != 5 else 2) for m in turn(row, number)], "w": row + 1.0}
    for row, count in enumerate(DOCUMENTS)
]


@pytest.fixture
def make(tmp_path, jsonl):
    path = jsonl(ROWS)

    def build(**options):
        defaults = {"train": Rows(path, weight="w"), "tokenizer": ByteTokenizer(), "cache_dir": str(tmp_path / "cache")}
        defaults |= {"chat_template": DROPS_REASONING, "rewritten_history": "split", "batch_size": 2}
        return InstructionDataModule(**{**defaults, **options})

    return build


def documents_of(store):
    """(row, weight, ids, labels) of each document."""
    return [
        (int(row), float(store.weights[index]), *(part.tolist() for part in store[index]))
        for index, row in enumerate(store.rows)
    ]


def test_each_document_has_the_row_and_weight_of_its_row_and_all_are_counted(make, caplog):
    module = make()
    with caplog.at_level("INFO"):
        module.setup("fit")
    store = module.documents("train")
    assert store.rows.tolist() == [row for row, count in enumerate(DOCUMENTS) for _ in range(count)]
    assert store.weights.tolist() == [row + 1.0 for row in store.rows.tolist()]
    report = module.report["train"]
    assert (report["rows"], report["kept"], report["split_rows"], report["split_documents"]) == (8, 14, 4, 10)
    assert "data.train: 14 documents of 8 rows (0 dropped" in caplog.text
    assert "data.train: 4 of 8 rows are split into 10 documents, because the chat template rewrites" in caplog.text
    texts = [module.tokenizer.decode([x for x in store[i][1].tolist() if x >= 0]) for i in range(len(store))]
    assert Counter(text for text in "".join(texts).split("<|im_end|>")) == Counter(
        ["", *(m["content"] for row in ROWS for m in row["messages"] if m["role"] == "assistant")]
    )
    assert sorted(d for batch in module.train_dataloader() for d in batch["documents"].tolist()) == [*range(14)]


def test_a_template_that_rewrites_nothing_gives_the_same_documents_either_way(make):
    kept, split = (make(chat_template=CHATML, rewritten_history=value) for value in ("keep", "split"))
    assert kept.documents("train").meta == split.documents("train").meta
    assert kept.documents("train").folder != split.documents("train").folder
    split = make(reasoning="drop")
    split.setup("fit")
    assert split.report["train"]["split_rows"] == 0


@pytest.mark.slow
def test_several_processes_split_alike(make, tmp_path):
    several = make(num_proc=2, cache_dir=str(tmp_path / "other")).documents("train")
    assert several.meta == make().documents("train").meta


def loader_of(module, **shape):
    source = module._splits["train"].loaded.source
    recipe = Recipe(chat_template=DROPS_REASONING, rewritten_history="split")
    plan = StreamPlan(batch_size=2, pool=2, **shape)
    row_tokenizer = RowTokenizer(LoadedSource(source, "train"), module.tokenizer, recipe)
    return StreamLoader(row_tokenizer, plan, pad_token_id=module.tokenizer.pad_token_id)


def batches_of(loader):
    return [{name: getattr(x, "tolist", lambda x=x: x)() for name, x in batch.items()} for batch in loader]


@pytest.mark.parametrize("packed", [None, 300])
def test_a_stream_visits_the_same_documents_and_resumes_exactly(make, packed):
    module = make()
    num_windows = 9 if packed is None else 4
    # Blocks of 4 rows: 7 documents (4 windows), then 7.
    batches = batches_of(loader_of(module, buffer=4, num_windows=num_windows, max_length=packed))
    if packed is None:
        store = module.documents("train")
        expected = Counter((len(ids), row, weight) for row, weight, ids, _ in documents_of(store))
        seen = Counter(
            (sum(mask), row, weights[0])
            for batch in batches[:8]
            for row, mask, weights in zip(
                batch["documents"], batch["attention_mask"], batch["token_weight"], strict=True
            )
        )
        assert seen == expected
    for given in (1, 3, num_windows // 2):
        first = loader_of(module, buffer=4, num_windows=num_windows, max_length=packed)
        iterator = iter(first)
        for _ in range(given):
            next(iterator)
        second = loader_of(module, buffer=4, num_windows=num_windows, max_length=packed)
        second.load_state_dict(first.state_dict())
        assert batches_of(second) == batches[given:]


def test_workers_keep_the_documents_of_a_row_in_order(make):
    loader = loader_of(make(), buffer=4)
    block = next(loader._reader.blocks(0, None))
    parts = [next(replace(loader._reader, worker=worker, num_workers=2).blocks(0, None)) for worker in (0, 1)]
    merged = merge_blocks(parts)
    assert [(d.row, d.ids.tolist()) for d in merged.documents] == [(d.row, d.ids.tolist()) for d in block.documents]
    assert merged.counts == block.counts
    assert (block.counts.split_rows, block.counts.split_documents) == (2, 5)


def test_the_first_split_rows_of_a_stream_are_reported(make, caplog):
    loader = loader_of(make(), buffer=4, num_windows=8)
    with caplog.at_level("INFO"):
        batches_of(loader)
    assert caplog.text.count("are split") == 1
    assert "data.train: 2 of the first 4 rows are split into 5 documents" in caplog.text
    assert (loader.report["split_rows"], loader.report["split_documents"], loader.report["kept"]) == (4, 10, 14)


def test_a_dropped_document_of_a_split_row_is_listed_with_its_number(make, jsonl):
    long = [*turn(0, 0), *turn(0, 1), *turn(0, 2)]
    long[3] = {"role": "assistant", "content": "<think>1</think>" + "long" * 30}
    module = make(train=jsonl([{"messages": long}, ROWS[0]], "long.jsonl"), max_length=150, overflow="drop")
    module.setup("fit")
    listed = [(row["row"], row["document"], row["what"]) for row in module.dropped_rows["train"]]
    assert listed == [(0, 1, "dropped"), (0, 2, "dropped")]  # the last one contains the long answer
    assert (module.report["train"]["kept"], module.report["train"]["dropped"]) == (2, 2)


def test_a_document_of_a_split_row_is_removed_if_validation_has_it(make, jsonl):
    held_out = jsonl([{"messages": ROWS[1]["messages"][:4]}], "held_out.jsonl")
    assert make(validation=held_out).documents("validation").rows.tolist() == [0, 0]
    module = make(validation=held_out, duplicates="remove")
    module.setup("fit")
    assert module.documents("train").rows.tolist().count(1) == 1
    assert [(row["row"], row["document"]) for row in module.dropped_rows["train"]] == [(1, 0), (1, 1)]


def test_a_mixture_counts_documents(make, jsonl):
    parts = {"whole": Part(jsonl(ROWS[:1], "a.jsonl"), 1.0), "split": Part(jsonl(ROWS[1:2], "b.jsonl"), 1.0)}
    module = make(train=Mixture(parts))
    module.setup("fit")
    assert {name: facts["kept"] for name, facts in module.report["train"]["sources"].items()} == {
        "whole": 1,
        "split": 3,
    }
    assert module.report["train"]["sources"]["whole"]["times_per_epoch"] == 2.0


def test_prompts_are_one_per_row_and_end_as_their_document_does_before_the_answer(make, jsonl):
    module = make(predict=jsonl(ROWS, "asked.jsonl"))
    prompts, documents = module.documents("predict"), module.documents("train")
    assert prompts.rows.tolist() == [*range(8)]
    for row in range(8):
        last = int((documents.rows == row).nonzero()[0][-1])
        ids, prompt = documents[last][0].tolist(), prompts[row][0].tolist()
        assert ids[: len(prompt)] == prompt
    assert module.prediction_row(7)["reference"] == "<think>2</think>7.2"


def test_capability_of_a_stream_measures_at_most_the_requested_documents(make):
    assert len(training_documents(make(streaming=True), 5)) == 5


def test_preview_shows_each_document_of_a_row_and_says_how_many_rows_are_split(make):
    preview = make_preview(make(), rows=2)
    assert [(shown.row, shown.part) for shown in preview.shown] == [
        (0, ""),
        (4, " (document 1 of 2)"),
        (4, " (document 2 of 2)"),
    ]
    assert preview.facts()["split"].startswith(f"4 of {preview.measured} rows into 10 documents")
    assert preview.problems == []
    assert len(preview.lengths) == 14
    assert "row 4 (document 2 of 2): " in html_page(preview)


def test_preview_says_which_rows_are_supervised_as_rewritten(make):
    preview = make_preview(make(rewritten_history="keep"))
    assert preview.facts()["history"].startswith("4 of 8 rows have an earlier turn")
    assert preview.problems == []  # fit trains on them as they are
    assert "history" not in make_preview(make(rewritten_history="keep", turns="last")).facts()
