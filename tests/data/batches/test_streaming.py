"""Training on a stream: each row once per pass, windows that ranks agree on, exact resuming."""

import json
import threading
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.cli.commands import main
from lit_probsft.cli.preview import make_preview
from lit_probsft.data import BPETokenizer, ByteTokenizer, InstructionDataModule, Mixture, Part, Rows
from lit_probsft.data.batches import streaming
from lit_probsft.data.batches.row_tokenizer import Recipe, RowTokenizer
from lit_probsft.data.batches.stream_plan import StreamPlan
from lit_probsft.data.batches.streaming import StreamLoader
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.splits import LoadedSource
from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL
from lit_probsft.storage.ranks import gather_objects
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.cli.test_fit import config

ROWS = [{"prompt": f"{i}?", "response": "so " * (i * 7 % 5) + f"{i}."} for i in range(29)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def loader_of(source, tokenizer, *, rank=0, workers=0, gather=gather_objects, skip=False, **shape):
    plan = StreamPlan(**{"batch_size": 2, "pool": 2, "buffer": 12, **shape})
    recipe = Recipe(max_length=plan.max_length, on_bad_row="skip" if skip else "error")
    row_tokenizer = RowTokenizer(LoadedSource(source, "train", skips=skip), tokenizer, recipe)
    return StreamLoader(
        row_tokenizer, plan, rank=rank, pad_token_id=tokenizer.pad_token_id, num_workers=workers, gather=gather
    )


class Ranks:
    """Loaders of several ranks, each in a thread, that gather like processes."""

    def __init__(self, source, tokenizer, world_size, **shape):
        self._barrier = threading.Barrier(world_size, timeout=30)
        self._turn = threading.Lock()  # chat templates are not thread-safe
        self._objects = [None] * world_size
        self.loaders = [
            loader_of(source, tokenizer, rank=rank, gather=self._gatherer(rank), world_size=world_size, **shape)
            for rank in range(world_size)
        ]

    def _gatherer(self, rank):
        def gather(own):
            self._objects[rank] = own
            self._turn.release()
            self._barrier.wait()
            everyones = list(self._objects)
            self._barrier.wait()
            self._turn.acquire()
            return everyones

        return gather

    def run(self, act):
        """Returns `act(loader)` of each rank, or the error it raises."""
        found = [None] * len(self.loaders)

        def acting(rank):
            with self._turn:
                try:
                    found[rank] = act(self.loaders[rank])
                except Exception as error:
                    found[rank] = error

        threads = [threading.Thread(target=acting, args=(rank,)) for rank in range(len(self.loaders))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def plain(batch):
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in batch.items()}


def drained(loader):
    return [plain(batch) for batch in loader]


shapes = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 3),
        "accumulate": st.integers(1, 3),
        "buffer": st.integers(1, 40),
        "pool": st.integers(0, 2),
        "max_length": st.sampled_from([None, 100, 200]),
        "seed": st.integers(0, 2),
    }
)


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(1, 12))
def test_a_block_has_every_row_once_and_the_counts_are_those_of_all_ranks(
    path, byte_tokenizer, shape, world_size, windows
):
    ranks = Ranks(Rows(str(path)), byte_tokenizer, world_size, num_windows=windows, **shape)
    batches_of_ranks = ranks.run(drained)
    assert not [error for error in batches_of_ranks if isinstance(error, Exception)]
    accumulate, block_size = shape["accumulate"], ranks.loaders[0].plan.block_size
    assert [len(batches) for batches in batches_of_ranks] == [windows * accumulate] * world_size
    seen = []
    for window in range(windows):
        batches = [b for batches in batches_of_ranks for b in batches[window * accumulate : (window + 1) * accumulate]]
        supervised = sum(label != -100 for b in batches for row in b["labels"] for label in row[1:])
        assert {b["window_tokens"] for b in batches} == {supervised}
        assert {b["window_length"] for b in batches} == {sum(b["num_tokens"] for b in batches)}
        assert {b["window_sequences"] for b in batches} == {sum(len(b["documents"]) for b in batches)}
        seen.append([document for b in batches for document in b["documents"]])
    flat = [document for documents in seen for document in documents]
    assert max(Counter(flat).values()) == 1
    # A block starts after the last document of the block before.
    blocks = [document // block_size for document in flat]
    assert blocks == sorted(blocks)
    for block in range(blocks[-1]):
        assert sorted(d for d in flat if d // block_size == block) == [
            *range(block * block_size, (block + 1) * block_size)
        ]
    assert {json.dumps(loader.state_dict()) for loader in ranks.loaders} == {json.dumps(ranks.loaders[0].state_dict())}


def test_alternating_sources_are_spread_over_the_ranks(path, byte_tokenizer):
    source = Mixture({name: Part(str(path), 1.0) for name in "ab"})
    ranks = Ranks(source, byte_tokenizer, 2, num_windows=8, buffer=64, batch_size=8)
    for batches in ranks.run(drained):
        for block in batches[:4], batches[4:]:
            found = Counter(row[0] for batch in block for row in batch["token_source"])
            assert found.total() == 32
            assert {8 <= found[source] <= 24 for source in (0, 1)} == {True}


def test_documents_have_the_numbers_of_their_rows(path, byte_tokenizer):
    for packed in (None, 200):
        loader = loader_of(Rows(str(path)), byte_tokenizer, num_windows=15, max_length=packed)
        for batch in loader:
            texts = byte_tokenizer.decode(batch["input_ids"][batch["labels"] != -100])
            expected = [ROWS[document % 29]["response"] + "<|im_end|>" for document in batch["documents"].tolist()]
            assert Counter(texts.split("<|im_end|>")) == Counter("".join(expected).split("<|im_end|>"))


@settings(max_examples=25, deadline=None)
@given(shapes, st.data())
def test_a_stream_resumes_after_any_window(path, byte_tokenizer, shape, data):
    windows = data.draw(st.integers(1, 14))
    stop = data.draw(st.integers(0, windows))

    def make():
        return loader_of(Rows(str(path)), byte_tokenizer, num_windows=windows, **shape)

    whole = drained(make())
    first, second = make(), make()
    batches = iter(first)
    received = [plain(next(batches)) for _ in range(stop * shape["accumulate"])]
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    rest = drained(second) if stop < windows else []
    assert received + rest == whole
    # Every row is counted once.
    uninterrupted = make()
    drained(uninterrupted)
    assert stop == windows or second.report == uninterrupted.report


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers_even_after_resuming(path, byte_tokenizer):
    source = Mixture({"a": Part(str(path), 2.0), "b": Part(Rows(str(path), limit=4), 1.0)})
    options = {"num_windows": 12, "accumulate": 2, "buffer": 16}
    whole = loader_of(source, byte_tokenizer, **options)
    expected = drained(whole)
    worked = loader_of(source, byte_tokenizer, workers=2, **options)
    batches = iter(worked)
    received = [plain(next(batches)) for _ in range(10)]
    state = worked.state_dict()
    batches.close()
    alone = loader_of(source, byte_tokenizer, **options)
    alone.load_state_dict(state)
    assert received + drained(alone) == expected
    assert alone.report == whole.report
    assert {source for batch in expected for row in batch["token_source"] for source in row} == {0, 1}


def test_a_stream_resumes_in_the_same_windows_with_other_micro_batches(path, byte_tokenizer):
    shapes = [{"batch_size": 4, "accumulate": 1}, {"batch_size": 2, "accumulate": 2}]
    first, second = (loader_of(Rows(str(path)), byte_tokenizer, num_windows=9, **shape) for shape in shapes)
    whole = [sorted(batch["documents"]) for batch in drained(first)]
    batches = iter(again := loader_of(Rows(str(path)), byte_tokenizer, num_windows=9, **shapes[0]))
    for _ in range(5):
        next(batches)
    second.load_state_dict(again.state_dict())
    rest = drained(second)
    windows = [sorted(rest[i]["documents"] + rest[i + 1]["documents"]) for i in range(0, len(rest), 2)]
    assert windows == whole[5:]


def test_resuming_with_another_number_of_processes_is_refused(path, byte_tokenizer):
    loader = loader_of(Rows(str(path)), byte_tokenizer)
    with pytest.raises(UserError, match=r"--resume: expected 2 processes as before.*got 1"):
        loader.load_state_dict({**loader.state_dict(), "world_size": 2})


def test_a_state_of_an_earlier_version_still_loads(path, byte_tokenizer):
    row = {"row": 3, "what": "skipped", "reason": "data.train: a reason"}
    state = {
        "block": 1,
        "place": {"passes": 0, "row": 16, "at": [0, [1000, 17]]},
        "given": 2,
        "report": {"rows": 16},
        "losses": [row],
        "total": 6,
        "accumulate": 1,
        "world_size": 1,
    }
    loader = loader_of(Rows(str(path)), byte_tokenizer, buffer=16)
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert loader.dropped_rows == [row]


# Bad rows.


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """29 rows; three of them are broken, each in another way."""
    file = tmp_path_factory.mktemp("broken") / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines[3], lines[14], lines[28] = "{nonsense", json.dumps({"prompt": "?", "response": ""}), '"text"'
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("world_size", [1, 2])
def test_bad_rows_are_skipped_counted_and_listed_once(broken, byte_tokenizer, world_size):
    ranks = Ranks(Rows(str(broken)), byte_tokenizer, world_size, num_windows=40 // world_size, skip=True)
    with pytest.warns(UserWarning, match=r"data.train: skipped: data.train.path: .* line 4: not valid JSON"):
        batches_of_ranks = ranks.run(drained)
    documents = {document for batches in batches_of_ranks for batch in batches for document in batch["documents"]}
    bad = {row for row in range(max(documents)) if row % 29 in (3, 14, 28)}
    assert documents.isdisjoint(bad)
    for loader in ranks.loaders:
        assert [(row["row"], row["what"]) for row in loader.dropped_rows] == [
            (3, "skipped"),
            (14, "skipped"),
            (28, "skipped"),
        ]
        report = loader.report
        assert report["rows"] == report["kept"] + report["skipped"]
        assert report["passes"] >= 2


def test_skipped_rows_are_reported_even_after_dropped_rows(tmp_path, byte_tokenizer):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "long" * 50, "response": "."}, *ROWS[:20]]))
    with file.open("a") as rows:
        rows.write("{nonsense\n")
    recipe = Recipe(max_length=150, overflow="drop", on_bad_row="skip")
    row_tokenizer = RowTokenizer(LoadedSource(Rows(str(file)), "train", skips=True), byte_tokenizer, recipe)
    loader = StreamLoader(row_tokenizer, StreamPlan(2, buffer=4, num_windows=12), pad_token_id=0)
    with pytest.warns(UserWarning, match="data.train: skipped: .* line 22: not valid JSON"):
        drained(loader)
    assert [row["what"] for row in loader.dropped_rows] == ["dropped", "skipped"]


def test_the_first_dropped_rows_are_listed_and_all_are_counted(broken, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_LISTED", 2)
    loader = loader_of(Rows(str(broken)), byte_tokenizer, num_windows=18, skip=True)
    with pytest.warns(UserWarning, match="skipped"):
        drained(loader)
    assert [row["row"] for row in loader.dropped_rows] == [3, 14]
    assert loader.report["skipped"] >= 3


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_first_bad_row_stops_all_ranks_with_its_reason(broken, byte_tokenizer, world_size):
    ranks = Ranks(Rows(str(broken)), byte_tokenizer, world_size, num_windows=9, buffer=6)
    errors = ranks.run(drained)
    assert all(isinstance(error, UserError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert str(errors[0]).startswith(f"data.train.path: {str(broken)!r} line 4: not valid JSON")
    assert str(errors[0]).endswith("(row 3 of data.train, counted from 0)")


@pytest.mark.slow
def test_a_worker_raises_the_same_error_as_the_loader_itself(broken, byte_tokenizer):
    with pytest.raises(UserError) as error:
        drained(loader_of(Rows(str(broken)), byte_tokenizer, num_windows=9, workers=1))
    assert str(error.value).startswith(f"data.train.path: {str(broken)!r} line 4: not valid JSON")
    assert "Traceback" not in str(error.value)


def test_a_stream_without_a_usable_row_is_not_read_forever(tmp_path, byte_tokenizer):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "?", "response": ""}\n' * 30)
    loader = loader_of(Rows(str(file)), byte_tokenizer, num_windows=3, skip=True)
    with pytest.raises(UserError, match=r"expected usable rows, got none of 36; the first: .*row 0"):
        drained(loader)


def test_a_stream_that_runs_out_of_usable_rows_is_not_read_forever(tmp_path, byte_tokenizer):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "?", "response": "!"}\n' * 6)
    loader = loader_of(Rows(str(file)), byte_tokenizer, num_windows=300, skip=True, buffer=2)
    with pytest.raises(UserError, match=r"expected usable rows, got none in a whole pass"):
        for index, _ in enumerate(loader):
            if index == 10:
                file.write_text('{"prompt": "?", "response": ""}\n' * 6)
    assert loader.report["kept"] > 6


# In the data module.


@pytest.fixture
def module(path, tmp_path):
    def build(**options):
        defaults = {"train": Rows(str(path)), "tokenizer": ByteTokenizer(), "batch_size": 4, "streaming": True}
        return InstructionDataModule(**{**defaults, "cache_dir": str(tmp_path / "cache"), **options})

    return build


@pytest.mark.parametrize("packing", [{}, {"packing": True, "max_length": 128, "batch_size": 2}])
def test_a_run_on_a_stream_takes_max_steps_steps(module, path, packing):
    data = module(validation=Rows(str(path), limit=5), shuffle_buffer=8, **packing)
    run = tiny.trainer(max_steps=7, max_epochs=None, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match=r"5 of the first 8 rows are in data.validation too"):
        run.fit(ProbSFTModule(tiny.model(), NLL()), datamodule=data)
    assert run.global_step == 7
    report = data.report["train"]
    assert report["rows"] == report["kept"] >= 7 * 4
    assert run.callback_metrics["val/nll"] > 0
    assert data._tokenized.stores.keys() == {"validation"}  # the training rows are not tokenized in advance
    assert data.num_windows == 7


def test_a_block_that_spans_two_epochs_is_continued_and_its_rows_counted_once(module, broken):
    whole, limited = (module(train=Rows(str(broken)), on_bad_row="skip", shuffle_buffer=16) for _ in range(2))
    seen = []
    for data, limit in ((whole, 1.0), (limited, 3)):
        run = tiny.trainer(max_steps=10, max_epochs=None, limit_train_batches=limit)
        model = ProbSFTModule(tiny.model(), NLL())
        step, documents = model.training_step, []

        def training_step(batch, index, step=step, documents=documents):
            documents.append(batch["documents"].tolist())
            return step(batch, index)

        model.training_step = training_step
        run.fit(model, datamodule=data)
        seen.append(documents)
    assert seen[0] == seen[1]
    assert whole.report["train"] == limited.report["train"]
    assert whole.dropped_rows == limited.dropped_rows


def test_duplicates_of_validation_are_dropped_from_a_stream_on_request(module, path):
    data = module(validation=Rows(str(path), limit=5), shuffle_buffer=32, duplicates="remove")
    data.setup("fit")
    loader = data.train_dataloader()
    with pytest.warns(UserWarning, match=r"are in data.validation too; they are dropped"):
        batches = [batch for batch, _ in zip(loader, range(14), strict=False)]
    seen = {document % 29 for batch in batches for document in batch["documents"].tolist()}
    assert seen == set(range(5, 29))
    assert [row["row"] for row in loader.dropped_rows] == list(range(5))
    assert {row["reason"] for row in loader.dropped_rows} == {"data.duplicates: it is in data.validation too"}


def test_an_endless_loader_has_no_length(module):
    data = module()
    data.setup("fit")
    with pytest.raises(TypeError, match="max_steps"):
        len(data.train_dataloader())
    with pytest.raises(UserError, match=r"data.streaming: expected a trainer with max_steps"):
        _ = data.num_windows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.1}, "data.validation_fraction: cannot be combined with data.streaming"),
        ({"tokenizer": BPETokenizer(300)}, "data.tokenizer: expected an existing tokenizer with data.streaming"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer: expected at least 1, got 0"),
        ({"shuffle_buffer": 5, "streaming": False}, "data.shuffle_buffer: needs data.streaming, got 5"),
    ],
)
def test_options_that_streaming_rules_out_are_refused(module, options, message):
    with pytest.raises(UserError) as error:
        module(**options)
    assert str(error.value).startswith(message)


def test_a_stream_is_checked_before_a_model_is_loaded(module, broken, tmp_path):
    with pytest.raises(UserError, match=r"data.train.prompt: no column 'question'"):
        module(train=Rows(str(broken), prompt="question", response="answer")).setup("fit")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"data.train.path: expected at least one row"):
        module(train=str(tmp_path / "empty.jsonl")).setup("fit")
    with pytest.raises(UserError, match=r"data.train.path: no such file"):
        module(train=str(tmp_path / "gone.jsonl")).setup("fit")


def test_a_streams_fingerprint_depends_on_the_names_and_sizes_of_its_files(module, path, tmp_path, monkeypatch):
    def fingerprint(train, **options):
        data = module(train=train, **options)
        data.setup("fit")
        return data.fingerprint

    (tmp_path / "there").mkdir()
    copy = tmp_path / "there" / path.name
    copy.write_bytes(path.read_bytes())

    def mixed(weight):
        return Mixture({"a": Part(str(copy), weight), "b": Part(str(path), 1.0)})

    first, mixture = fingerprint(str(path)), fingerprint(mixed(2.0))
    assert fingerprint(str(copy)) == fingerprint(str(copy.parent / "*.jsonl")) == first
    assert fingerprint(str(path), seed=1) != first
    assert fingerprint(mixed(3.0)) != mixture == fingerprint(mixed(2.0))
    copy.write_text(copy.read_text() + copy.read_text())
    assert fingerprint(str(copy)) != first
    assert fingerprint(mixed(2.0)) != mixture
    (copy.parent / "another.jsonl").write_bytes(path.read_bytes())
    assert fingerprint(str(copy.parent / "*.jsonl")) != fingerprint(str(copy))
    monkeypatch.setattr("lit_probsft.data.batches.stream_checks.VERSION", 0)
    assert fingerprint(str(path)) != first


def test_ids_and_lengths_beyond_the_models_limits_are_refused(module, jsonl):
    with pytest.raises(UserError, match=r"data.tokenizer: expected ids below the model's vocabulary of 259, got 300"):
        tokens = jsonl([{"input_ids": [1, 300], "labels": [-100, 300]}])
        tiny.trainer(max_steps=3).fit(ProbSFTModule(tiny.model()), datamodule=module(train=tokens))
    with pytest.raises(UserError, match=r"data.max_length: expected documents within the model's 16 positions"):
        tiny.trainer(max_steps=3).fit(ProbSFTModule(tiny.model(max_position_embeddings=16)), datamodule=module())


def test_a_preview_shows_the_first_rows_of_a_stream(module, broken):
    preview = make_preview(module(train=Rows(str(broken))))
    assert preview.facts()["rows"] == "the first 29 of a stream"
    assert sorted(problem.first for problem in preview.problems) == [3, 14, 28]


def test_a_streaming_run_records_its_counts_and_skipped_rows(broken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"data__train": {"class_path": "Rows", "init_args": {"path": str(broken)}}, "data__streaming": True}
    changes |= {"data__on_bad_row": "skip", "data__shuffle_buffer": 16, "trainer__max_epochs": None}
    written = config(tmp_path, **changes, data__validation=None, trainer__max_steps=9)
    main(["fit", "--config", str(written), "--name", "run"])
    record = json.loads((tmp_path / "runs/run/run.json").read_text())
    assert record["data"]["train"]["skipped"] >= 3
    assert record["counts"]["optimizer_steps"] == 9
    skipped = [json.loads(line) for line in (tmp_path / "runs/run/skipped.jsonl").read_text().splitlines()]
    assert [(row["split"], row["row"]) for row in skipped] == [("train", 3), ("train", 14), ("train", 28)]
    with pytest.raises(
        UserError, match=r"trainer.max_steps: expected the number of optimizer steps with data.streaming"
    ):
        main(["fit", "--config", str(written), "--name", "other", "--trainer.max_steps", "-1"])


def test_any_source_can_be_streamed(module):
    class Made(Source):
        def load(self):
            return ROWS

        def conversation(self, row):
            return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]

        def describe(self):
            return {"source": "made"}

    data = module(train=Made())
    run = tiny.trainer(max_steps=2)
    run.fit(ProbSFTModule(tiny.model(), NLL()), datamodule=data)
    assert run.global_step == 2
