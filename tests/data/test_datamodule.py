import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

from lit_probsft.data import (
    BPETokenizer,
    ByteTokenizer,
    FigletPuzzles,
    InstructionDataModule,
    PretrainedTokenizer,
    Rows,
)
from lit_probsft.errors import UserError
from tests.data.chat_templates import CHATML, MARKS_WITHOUT_END, NO_SYSTEM


@pytest.fixture
def make(tmp_path, jsonl, questions):
    """Makes a data module over `questions` with its own cache, and sets it up for a stage unless that is None."""
    path = jsonl(questions)

    def build(stage="fit", **kwargs):
        defaults = {"train": path, "tokenizer": ByteTokenizer(), "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
        module = InstructionDataModule(**{**defaults, **kwargs})
        if stage is not None:
            module.setup(stage)
        return module

    return build


def drain(loader):
    return [document for batch in loader for document in batch["documents"].tolist()]


def answers(module, loader):
    """The supervised text of each document."""
    found = {}
    for batch in loader:
        for document, ids, labels in zip(batch["documents"].tolist(), batch["input_ids"], batch["labels"], strict=True):
            found[document] = module.tokenizer.decode(ids[labels != -100])
    return found


# Batches.


def test_training_visits_every_row_with_its_answer_supervised(make, questions):
    module = make()
    texts = answers(module, module.train_dataloader())
    assert texts == {i: row["response"] + "<|im_end|>" for i, row in enumerate(questions)}
    assert module.report["train"]["rows"] == module.report["train"]["kept"] == 24
    assert module.report["train"]["supervised_tokens"] == sum(len(row["response"]) + 1 for row in questions)
    assert module.report["train"]["max_length"] == module.plan.lengths.max()
    assert module.report["train"]["fingerprint"] == module.fingerprint
    assert module.max_token_id == 258
    assert module.num_windows == len(module.train_dataloader()) == 6
    assert module.val_dataloader() == []


def test_a_held_out_fraction_is_disjoint_and_depends_on_the_seed_only(make):
    module = make(validation_fraction=0.25)
    kept, held_out = (module.documents(name).rows.tolist() for name in ("train", "validation"))
    assert sorted(kept + held_out) == list(range(24))
    assert len(held_out) == 6
    assert sorted(drain(module.val_dataloader())) == list(range(6))
    again, other = (
        make(validation_fraction=0.25, cache_dir=str(module._tokenized.cache / "x")),
        make(validation_fraction=0.25, seed=1),
    )
    assert again.documents("validation").rows.tolist() == held_out != other.documents("validation").rows.tolist()


def test_evaluation_visits_every_document_once_on_any_number_of_ranks(make, jsonl, questions):
    module = make("test", test=jsonl(questions[:7], "test.jsonl"), eval_batch_size=3)
    assert sorted(drain(module.test_dataloader())) == list(range(7))
    assert "train" not in module.report
    assert module.fingerprint is None


def test_prediction_has_prompts_padded_on_the_left_and_their_rows(make, jsonl, questions):
    # max_length limits training documents, not prompts.
    module = make("predict", test=jsonl(questions, "test.jsonl"), max_length=20, overflow="drop")
    seen = []
    for batch in module.predict_dataloader():
        assert "labels" not in batch
        for document, ids, mask in zip(
            batch["documents"].tolist(), batch["input_ids"], batch["attention_mask"], strict=True
        ):
            row = module.prediction_row(document)
            text = module.tokenizer.decode(ids[mask.bool()])
            assert text == f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
            assert mask.tolist() == sorted(mask.tolist())
            assert (row["prompt"], row["reference"]) == (
                questions[row["index"]]["prompt"],
                questions[row["index"]]["response"],
            )
            seen.append(row["index"])
    assert sorted(seen) == list(range(24))
    assert drain(make("predict", validation=jsonl(questions[:3], "v.jsonl")).predict_dataloader())


def test_plain_format_and_template_files_are_used(make, tmp_path, questions):
    module = make(format="plain")
    ids, _ = module.documents("train")[0]
    assert module.tokenizer.decode(ids) == questions[0]["prompt"] + questions[0]["response"] + "<|im_end|>"
    (tmp_path / "mine.jinja").write_text("{{ 'Hello. ' }}" + CHATML)
    for template in (str(tmp_path / "mine.jinja"), "{{ 'Hello. ' }}" + CHATML):
        module = make(chat_template=template)
        assert module.tokenizer.decode(module.documents("train")[0][0]).startswith("Hello. <|im_start|>user")


def test_too_long_rows_are_truncated_or_dropped_and_counted(make, questions):
    whole = make().documents("train")
    limit = 75
    long = [i for i, length in enumerate(whole.lengths) if length > limit]
    assert 0 < len(long) < 24
    dropped = make(max_length=limit, overflow="drop")
    assert dropped.report["train"]["dropped"] == len(long)
    assert dropped.documents("train").rows.tolist() == [i for i in range(24) if i not in long]
    truncated = make(max_length=limit, overflow="truncate").report["train"]
    assert truncated["max_length"] == limit
    assert truncated["truncated"] + truncated["dropped"] == len(long)
    assert truncated["truncated"] > 0
    assert truncated["dropped"] > 0  # rows whose prompt alone is too long


def test_a_tokenizer_can_be_trained_on_the_rows_or_passed_loaded(make, byte_tokenizer):
    trained = make(tokenizer=BPETokenizer(300), validation_fraction=0.25)
    assert 259 < len(trained.tokenizer) <= 300
    again = make(None, tokenizer=BPETokenizer(300), validation_fraction=0.25)
    assert again.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
    assert make(tokenizer=byte_tokenizer).fingerprint == make().fingerprint


@pytest.mark.slow
def test_several_processes_give_the_same_tokens(make, tmp_path):
    assert make(num_proc=2, cache_dir=str(tmp_path / "other")).fingerprint == make().fingerprint


def test_puzzles_need_no_file(tmp_path):
    module = InstructionDataModule(FigletPuzzles(count=4), tokenizer=ByteTokenizer(), cache_dir=str(tmp_path))
    module.setup()
    assert module.report["train"]["kept"] == 4


# The cache.


def test_a_second_setup_reads_the_cache(make, monkeypatch):
    first = make(validation_fraction=0.25)
    monkeypatch.setattr(
        "lit_probsft.data.batches.cache.tokenize_rows", lambda *args, **kwargs: pytest.fail("tokenized again")
    )
    second = make(validation_fraction=0.25)
    assert second.report == first.report


def test_a_changed_option_never_reads_a_stale_cache(make, questions, jsonl, tmp_path):
    (tmp_path / "bytes").mkdir()
    tokenizer = ByteTokenizer().load(list)
    tokenizer.add_tokens(["Say."])
    changes = [
        {},
        {"train": jsonl(questions[:-1], "fewer.jsonl")},
        {"train": Rows(jsonl(questions), system="Be kind.")},
        {"tokenizer": tokenizer},
        {"tokenizer": BPETokenizer(280)},
        {"format": "plain"},
        {"chat_template": "{{ 'x' }}" + CHATML},
        {"chat_template": MARKS_WITHOUT_END, "require_end_of_turn": False},
        {"max_length": 75, "overflow": "drop"},
        {"max_length": 75, "overflow": "truncate"},
        {"validation_fraction": 0.25},
        {"validation_fraction": 0.25, "seed": 1},
    ]
    fingerprints = [make(**change).fingerprint for change in changes]
    assert len(set(fingerprints)) == len(changes)
    assert [make(**change).fingerprint for change in changes] == fingerprints


def test_a_failed_tokenization_leaves_no_files(make, jsonl, questions, tmp_path):
    path = jsonl([*questions, {"prompt": "x", "response": ""}], "bad.jsonl")
    with pytest.raises(UserError):
        make(train=path)
    assert {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()} <= {".lock"}


def test_the_environment_sets_the_cache_folder(monkeypatch, tmp_path, jsonl, questions):
    monkeypatch.setenv("LIT_PROBSFT_CACHE", str(tmp_path / "here"))
    InstructionDataModule(jsonl(questions), tokenizer=ByteTokenizer()).setup("fit")
    assert list((tmp_path / "here" / "tokens").iterdir())


def test_options_of_masks_and_duplicates_never_read_a_stale_cache(make, jsonl, questions):
    turns = [
        *({"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c"}),
        *({"role": "user", "content": "d"}, {"role": "assistant", "content": "<think>e</think>f"}),
    ]
    excluded = [turns[0], {**turns[1], "train": False}, *turns[2:]]
    path, other = jsonl([{"messages": turns}, *questions]), jsonl([{"messages": excluded}, *questions], "other.jsonl")
    changes = [
        {"train": path},
        {"train": path, "turns": "first"},
        {"train": path, "turns": "last"},
        {"train": path, "reasoning": "mask"},
        {"train": path, "reasoning": "drop"},
        {"train": path, "turns": "last", "reasoning": "mask"},
        {"train": path, "validation": jsonl(questions[:2], "v.jsonl"), "duplicates": "remove"},
        {"train": path, "validation": jsonl(questions[:3], "w.jsonl"), "duplicates": "remove"},
        {"train": Rows(path, prompt="{prompt}?", response="response"), "on_bad_row": "skip"},
    ]
    fingerprints = [make(**change).fingerprint for change in changes]
    assert len(set(fingerprints)) == len(changes)
    assert [make(**change).fingerprint for change in changes] == fingerprints
    assert make(train=other).fingerprint == fingerprints[2]  # without the first turn


# With a trainer.


quiet = pytest.mark.filterwarnings("ignore::UserWarning")  # from a module that trains nothing


class Counter(LightningModule):
    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "validation": [], "predict": []}

    def training_step(self, batch, index):
        self.seen["train"].append((batch["documents"].tolist(), batch["window_tokens"]))

    def validation_step(self, batch, index):
        self.seen["validation"] += batch["documents"].tolist()

    def predict_step(self, batch, index):
        self.seen["predict"] += batch["documents"].tolist()

    def configure_optimizers(self):
        return None


def trainer(**kwargs):
    bare = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **bare, **kwargs)


@quiet
def test_the_plan_follows_the_trainers_accumulation_and_predictions_are_complete(make):
    module, model = make(None, validation_fraction=0.25), Counter()
    trainer(accumulate_grad_batches=3).fit(model, datamodule=module)
    assert module.plan.accumulate == 3
    assert module.num_windows == 2
    assert len(model.seen["train"]) == 6
    supervised = module.documents("train").supervised
    for start in (0, 3):  # the second window is incomplete
        window = model.seen["train"][start : start + 3]
        assert {tokens for _, tokens in window} == {sum(supervised[documents].sum() for documents, _ in window)}
    assert sorted(model.seen["validation"]) == list(range(6))
    trainer().predict(model, datamodule=module)
    assert sorted(model.seen["predict"]) == list(range(6))


@quiet
def test_overfit_batches_repeats_the_same_batches(make):
    module, model = make(None), Counter()
    trainer(overfit_batches=2).fit(model, datamodule=module)
    assert len(model.seen["train"]) == 2
    assert module.train_dataloader().fixed_epoch


# YAML and flags.


def parse(*args, text=None):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(InstructionDataModule, "data")
    config = parser.parse_object(yaml.safe_load(text)) if text else parser.parse_args(list(args))
    return parser.instantiate(config).data


def sources(module):
    return {name: split.loaded.source for name, split in module._splits.items()}


def test_sources_and_tokenizers_come_from_yaml_by_class_path():
    module = parse(
        text="""
        data:
          train: {class_path: Rows, init_args: {path: [a.jsonl, b.jsonl], prompt: question, response: answer}}
          validation: {class_path: lit_probsft.data.FigletPuzzles, init_args: {start: 40000, count: 5000}}
          test: t.jsonl
          tokenizer: {class_path: PretrainedTokenizer, init_args: {name_or_path: some/model, pad_token: x}}
          max_length: 128
          overflow: truncate
        """
    )
    assert sources(module) == {
        "train": Rows(["a.jsonl", "b.jsonl"], prompt="question", response="answer"),
        "validation": FigletPuzzles(start=40000, count=5000),
        "test": Rows("t.jsonl"),
        "predict": Rows("t.jsonl"),
    }
    assert module._tokenized.tokenizer_source == PretrainedTokenizer("some/model", pad_token="x")
    assert (module.max_length, module.overflow) == (128, "truncate")


def test_sources_and_tokenizers_come_from_flags():
    module = parse(
        *("--data.train", "Rows", "--data.train.path", "x", "--data.train.prompt", "question"),
        *("--data.train.response", "answer", "--data.tokenizer", "ByteTokenizer", "--data.validation", "v.jsonl"),
    )
    assert sources(module)["train"] == Rows("x", prompt="question", response="answer")
    assert sources(module)["validation"] == Rows("v.jsonl")
    assert module._tokenized.tokenizer_source == ByteTokenizer()
    assert parse("--data.tokenizer", "some/model")._tokenized.tokenizer_source == PretrainedTokenizer("some/model")


def test_describe_returns_plain_data():
    module = InstructionDataModule(FigletPuzzles(count=9), tokenizer=ByteTokenizer(), validation_fraction=0.5)
    record = json.loads(json.dumps(module.describe()))
    assert record["train"]["count"] == 9
    assert record["tokenizer"] == {"tokenizer": "ByteTokenizer"}


# Errors.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "^data.batch_size: expected at least 1, got 0"),
        ({"eval_batch_size": 0}, "^data.eval_batch_size: expected at least 1"),
        ({"max_length": 1}, "^data.max_length: expected at least 2"),
        ({"length_pool": -1}, "^data.length_pool: "),
        ({"seed": -1}, "^data.seed: "),
        ({"num_workers": -1}, "^data.num_workers: "),
        ({"num_proc": 0}, "^data.num_proc: "),
        ({"validation_fraction": 1.0}, "^data.validation_fraction: expected at least 0 and less than 1, got 1.0"),
        (
            {"validation_fraction": 0.1, "validation": "x"},
            "^data.validation_fraction: cannot be combined with data.validation",
        ),
        ({"validation_fraction": 0.1, "train": None}, "^data.validation_fraction: needs data.train"),
        ({"format": "chatt"}, "^data.format: expected one of chat, plain, got 'chatt'. Did you mean 'chat'"),
        ({"turns": "frist"}, "^data.turns: expected one of all, first, last, got 'frist'. Did you mean 'first'"),
        ({"reasoning": "hide"}, "^data.reasoning: expected one of learn, mask, drop"),
        ({"on_bad_row": "ignore"}, "^data.on_bad_row: expected one of error, skip"),
        ({"duplicates": "drop"}, "^data.duplicates: expected one of keep, remove"),
        ({"overflow": "cut"}, "^data.overflow: expected one of error, truncate, drop"),
        ({"format": "plain", "chat_template": CHATML}, "^data.chat_template: cannot be combined with"),
        ({"chat_template": "nowhere.jinja"}, "^data.chat_template: expected a template file or Jinja text"),
    ],
)
def test_values_out_of_range_are_refused_at_construction(make, kwargs, message):
    with pytest.raises(UserError, match=message):
        make(None, **kwargs)


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        (None, {"train": "none.jsonl"}, "^data.train.path: no such file: 'none.jsonl'"),
        (None, {"train": None}, "^data.train: expected a source of rows"),
        (None, {"tokenizer": None}, "^data.tokenizer: expected a tokenizer"),
        (None, {"tokenizer": "./nowhere"}, "^data.tokenizer.name_or_path: no such folder"),
        (None, {"max_length": 40}, r"^data.max_length: expected at most 40 tokens, got \d+ \(row 1 of data.train"),
        (
            None,
            {"max_length": 5, "overflow": "drop"},
            r"^data.train: .*, got none of 24 \(24 dropped, 0 skipped\); the first: data.max_length: \d+ tokens",
        ),
        (
            None,
            {"max_length": 5, "overflow": "truncate"},
            "^data.train: .* got none of 24 .*data.max_length: .* none of the first 5 is supervised",
        ),
        (None, {"validation_fraction": 0.01}, "^data.validation_fraction: expected a share .* got 0.01 of 24 rows"),
        (None, {"chat_template": "{% for %}"}, "^data.chat_template: not valid Jinja, line 1: "),
        (None, {"chat_template": MARKS_WITHOUT_END}, "^data.require_end_of_turn: the assistant's turn does not end"),
        (None, {"chat_template": "{{ 'x' }}"}, "^data.chat_template: the mask supervises nothing"),
        ([], {}, "^data.train: expected at least one row, got an empty data set"),
        ([{"q": "a", "response": "b"}], {}, "^data.train.prompt: no column 'prompt' among 'q'"),
        ([{"q": "a", "a": "b"}], {}, "^data.train.prompt: expected the columns of a known format: `messages`"),
        (
            [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": 4}],
            {},
            r"^data.train.response: .*got 4 \(row 1 of",
        ),
        (
            [{"prompt": "a", "response": "b"}, {"prompt": "a"}],
            {},
            r"^data.train.response: no column 'response' among 'prompt'.* \(row 1 of",
        ),
        (
            [{"messages": [{"role": "user", "content": "x"}]}],
            {},
            r"^data.train.messages: expected the last turn .*row 0",
        ),
        (
            [{"messages": [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]}],
            {"chat_template": NO_SYSTEM},
            "^data.chat_template: the template refuses the roles system, user: System role not supported",
        ),
    ],
)
def test_bad_data_is_refused_with_the_argument_at_fault(make, jsonl, rows, kwargs, message):
    if rows is not None:
        kwargs = {**kwargs, "train": jsonl(rows, "bad.jsonl")}
    with pytest.raises(UserError, match=message):
        make(**kwargs)


def test_missing_columns_are_refused_with_near_matches(make, jsonl):
    path = jsonl([{"question": "a", "answer": "b"}], "qa.jsonl")
    with pytest.raises(UserError, match=r"^data.train.prompt: no column 'quesion' .*Did you mean 'question'"):
        make(train=Rows(path, prompt="quesion", response="answer"))
    with pytest.raises(UserError, match=r"^data.validation.response: no column 'anser' .*Did you mean 'answer'"):
        make(validation=Rows(path, prompt="question", response="anser"))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_rows_is_refused_with_the_name_of_its_split(make, stage):
    name = {"validate": "validation"}.get(stage, stage)
    with pytest.raises(UserError, match=f"^data.{name}: expected a source of rows"):
        make(stage)


def test_a_tokenizer_without_pad_token_gets_one_or_the_named_one(make, tmp_path):
    tokenizer = ByteTokenizer().load(list)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "padless")
    for given in (tokenizer, str(tmp_path / "padless")):
        assert make(tokenizer=given).tokenizer.pad_token == "<|pad|>"
    named = PretrainedTokenizer(str(tmp_path / "padless"), pad_token="<|im_end|>")
    assert make(tokenizer=named).tokenizer.pad_token_id == 258
    with pytest.raises(UserError, match=r"^data.tokenizer.pad_token: '<nil>' is not in the tokenizer's vocabulary"):
        make(tokenizer=PretrainedTokenizer(str(tmp_path / "padless"), pad_token="<nil>"))


def test_importing_the_package_imports_nothing_heavy():
    root = Path(__file__).parents[2]
    code = """
import sys, lit_probsft.data as data
data.Rows, data.Plan, data.ByteTokenizer, data.tokenize_conversation
assert not {"torch", "lightning", "transformers", "datasets", "tokenizers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


# Bad rows.


BAD_LINES = [
    (b'{"prompt": \n', "line 3: not valid JSON"),
    (b'{"prompt": "\xff", "response": "b"}\n', "line 3: not UTF-8"),
    (b"[1]\n", "line 3: expected an object, got a list"),
    (b'{"prompt": "a", "response": ""}\n', "response: column 'response': expected non-empty text, got ''"),
    (b'{"prompt": "a", "response": 4}\n', "response: column 'response': expected non-empty text, got 4"),
    (b'{"question": "a"}\n', "prompt: expected the columns of a known format: `messages`"),
    (b'{"messages": [{"role": "assistant", "content": "a"}]}\n', "messages[0]: roles out of order"),
    (b'{"messages": [{"role": "user", "content": "a"}]}\n', "messages: expected the last turn to be the assistant's"),
    (b'{"prompt": "a", "response": "' + b"b" * 200 + b'"}\n', "data.max_length: expected at most 120 tokens, got"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_row_stops_the_run_or_is_skipped_counted_and_listed(make, tmp_path, line, reason):
    good = b'{"prompt": "a", "response": "b"}\n'
    path = tmp_path / "some_bad.jsonl"
    path.write_bytes(good * 2 + line + good)
    with pytest.raises(UserError) as refused:
        make(train=str(path), max_length=120)
    assert reason in str(refused.value)
    for _ in range(2):  # tokenized first, then from the cache
        module = make(train=str(path), max_length=120, on_bad_row="skip")
        report = module.report["train"]
        assert (report["rows"], report["kept"], report["skipped"], report["dropped"]) == (4, 3, 1, 0)
        (dropped,) = module.dropped_rows["train"]
        assert (dropped["row"], dropped["what"]) == (2, "skipped")
        assert reason in dropped["reason"]
        assert module.documents("train").rows.tolist() == [0, 1, 3]


def test_a_csv_cell_that_is_not_utf_8_skips_only_its_row(make, tmp_path):
    path = tmp_path / "some_bad.csv"
    path.write_bytes(b"prompt,response\na,b\na,\xff\na,b,c\nc,d\n")
    module = make(train=str(path), on_bad_row="skip")
    assert module.documents("train").rows.tolist() == [0, 3]
    assert ["line 3: not UTF-8" in row["reason"] for row in module.dropped_rows["train"]] == [True, False]


def test_dropped_rows_are_listed_with_their_length(make, questions):
    module = make(max_length=75, overflow="drop")
    assert len(module.dropped_rows["train"]) == module.report["train"]["dropped"] > 0
    dropped = module.dropped_rows["train"][0]
    assert dropped["what"] == "dropped"
    assert "tokens, at most 75 are kept" in dropped["reason"]


def test_errors_that_concern_all_rows_are_never_skipped(make, jsonl, questions, tmp_path):
    with pytest.raises(UserError, match="^data.chat_template: not valid Jinja"):
        make(chat_template="{% for %}", on_bad_row="skip")
    with pytest.raises(UserError, match="^data.train: expected at least one row, got an empty data set"):
        make(train=jsonl([], "none.jsonl"), on_bad_row="skip")
    with pytest.raises(
        UserError,
        match=r"^data.train: .* got none of 24 \(0 dropped, 24 skipped\); the first: data.require_end_of_turn: ",
    ):
        make(chat_template=MARKS_WITHOUT_END, on_bad_row="skip")
    assert {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()} <= {".lock"}


def test_a_tokenizer_is_trained_on_the_usable_rows(make, jsonl, questions):
    path = jsonl([*questions, {"prompt": "x", "response": ""}], "bad.jsonl")
    with pytest.raises(UserError, match=r"^data.train.response: .*\(row 24 of data.train"):
        make(train=path, tokenizer=BPETokenizer(300))
    assert make(train=path, tokenizer=BPETokenizer(300), on_bad_row="skip").report["train"]["kept"] == 24


# Duplicates.


def test_documents_in_both_splits_are_counted_and_removed_from_training_on_request(make, jsonl, questions):
    held_out = jsonl([*questions[:3], {"prompt": questions[5]["prompt"], "response": "Other."}], "held_out.jsonl")
    kept = make(validation=held_out)
    assert kept.report["train"]["in_validation"] == 3
    removed = make(validation=held_out, duplicates="remove")
    assert removed.report["train"]["in_validation"] == 0
    assert removed.report["train"]["dropped"] == 3
    assert removed.documents("train").rows.tolist() == list(range(3, 24))
    assert {row["reason"] for row in removed.dropped_rows["train"]} == {"data.duplicates: it is in data.validation too"}
    assert removed.report["validation"] == kept.report["validation"]
    fewer = make(validation=jsonl(questions[:2], "fewer.jsonl"), duplicates="remove")
    assert fewer.report["train"]["kept"] == 22  # and not the cached tokens for the other validation set


def test_a_fraction_can_put_duplicates_of_one_source_in_both_splits(make, jsonl, questions):
    path = jsonl(questions[:4] * 6, "repeated.jsonl")
    module = make(train=path, validation_fraction=0.25)
    assert module.report["train"]["in_validation"] > 0
    with pytest.raises(
        UserError, match="^data.train: .* got none of 18 .*: data.duplicates: it is in data.validation too"
    ):
        make(train=path, validation_fraction=0.25, duplicates="remove", seed=3)
