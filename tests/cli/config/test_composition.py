"""What files and flags say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_probsft.cli.config.composition import Composer
from lit_probsft.errors import UserError
from lit_probsft.training.module import ProbSFTModule
from tests.cli.config.flags import FLAGS

FILE = """
model:
  model: {class_path: PretrainedCausalLM, init_args: {model_name_or_path: org/model, revision: 77950e8}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01, weight_decay: 0.3}}
  objective: {class_path: Threshold, init_args: {min_prob: 0.2, base: {class_path: Power, init_args: {alpha: 3}}}}
"""


def composed(*words: str) -> dict[str, Any]:
    return Composer("fit", FLAGS, ["resume"]).compose(words).content


def at(content: Any, place: str) -> Any:
    """What is at a place, classes as their name and their arguments."""
    for name in place.split("."):
        content = content.get("init_args", content)[name]
    if isinstance(content, dict) and "class_path" in content:
        return content["class_path"].rpartition(".")[2], content.get("init_args", {})
    return content


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(FILE)
    return str(path)


MIXTURE = "--data.train Mixture --data.train.sources.x a"
POWER = "--model.objective Power --model.objective.alpha 4"
PRETRAINED = ("PretrainedCausalLM", {"model_name_or_path": "folder", "dtype": "bfloat16"})


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        ("--model.model folder --model.model.dtype bfloat16", "model.model", PRETRAINED),
        ("--model.model.dtype bfloat16 --model.model folder", "model.model", PRETRAINED),
        ("--model.model.model_name_or_path folder --model.model.dtype bfloat16", "model.model", PRETRAINED),
        ("--model.lora.r 8", "model.lora", {"r": 8}),
        ("--model.lora null --model.lora.r 8", "model.lora", {"r": 8}),
        ("--model.optimizer.lr 1e-4", "model.optimizer", ("AdamW", {"lr": 1e-4, "betas": [0.9, 0.95]})),
        (
            "--model.optimizer lit_probsft.training.module.default_optimizer --model.optimizer.lr 1",
            "model.optimizer",
            ("AdamW", {"lr": 1, "betas": [0.9, 0.95]}),
        ),
        ("--model.optimizer.lr 1 --model.optimizer SGD", "model.optimizer", ("SGD", {"lr": 1})),
        ('--model.schedule.final 1 --model.schedule {"warmup":0.2}', "model.schedule", {"final": 1, "warmup": 0.2}),
        ("--model.reference.model.dtype float32 --model.reference.model a", "model.reference.model.dtype", "float32"),
        ("--data.train.limit 3 --data.train a.jsonl", "data.train", ("Rows", {"path": "a.jsonl", "limit": 3})),
        ("--data.train.path a.jsonl", "data.train", ("Rows", {"path": "a.jsonl"})),
        ("--data.tokenizer a --data.tokenizer.revision 1e3", "data.tokenizer.revision", "1e3"),
        ("--data.watch.x a --data.watch.x.system 3", "data.watch.x", ("Rows", {"path": "a", "system": "3"})),
        (f"{MIXTURE} --data.train.sources.x.weight 3", "data.train.sources.x", {"source": "a", "weight": 3}),
        (f"{MIXTURE} --data.train.sources.x.system 3", "data.train.sources.x.system", "3"),
        ("--model.model RandomCausalLM --model.model.config.hidden_size 16", "model.model.config", {"hidden_size": 16}),
        ("--data.add_tokens+ 1e3 --data.add_tokens+ [a,b]", "data.add_tokens", ["1e3", "a", "b"]),
        ("--trainer.devices 2", "trainer.devices", 2),
        ("--trainer.devices auto", "trainer.devices", "auto"),
        ("--name null", "name", None),
        ("--name=", "name", ""),
        ("--resume", "resume", True),
    ],
)
def test_a_flag_below_an_option_sets_an_argument_of_its_class(words: str, place: str, value: Any) -> None:
    assert at(composed(*words.split(" ")), place) == value


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        ("--model.optimizer SGD", "model.optimizer", ("SGD", {})),
        ("--model.optimizer torch.optim.AdamW", "model.optimizer", ("AdamW", {})),
        ("--model.optimizer.lr 1", "model.optimizer", ("AdamW", {"lr": 1, "weight_decay": 0.3})),
        ("--model.objective.base Power", "model.objective.base", ("Power", {})),
        ("--model.objective.base.alpha 4", "model.objective.base", ("Power", {"alpha": 4})),
        ("--model.objective Threshold", "model.objective", ("Threshold", {})),
        ("--model.objective.alpha 4 --model.objective Power", "model.objective", ("Power", {"alpha": 4})),
        (f"{POWER} --model.objective Power", "model.objective", ("Power", {"alpha": 4})),
        (f"{POWER} --model.objective NegP", "model.objective", ("NegP", {})),
        ("--model.model folder", "model.model", "folder"),
        ("--model.model.revision 0e12345", "model.model.revision", "0e12345"),
        ('--model.objective {"class_path":"Power"}', "model.objective", ("Power", {})),
    ],
)
def test_a_class_named_by_a_flag_starts_from_its_own_defaults(words: str, place: str, value: Any, file: str) -> None:
    assert at(composed("--config", file, *words.split(" ")), place) == value


def test_a_later_file_keeps_the_arguments_of_the_same_class_only(tmp_path: Path, file: str) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1}}}")
    content = composed("--config", file, "--config", str(later))
    assert at(content, "model.optimizer") == ("AdamW", {"lr": 1, "weight_decay": 0.3})
    assert at(content, "model.objective.min_prob") == 0.2
    later.write_text("model: {optimizer: {class_path: torch.optim.SGD, init_args: {momentum: 1}}}")
    assert at(composed("--config", file, "--config", str(later)), "model.optimizer") == ("SGD", {"momentum": 1})
    assert at(composed("--config", str(later), "--config", file), "model.optimizer.weight_decay") == 0.3


def test_later_wins(file: str) -> None:
    assert at(composed("--model.optimizer.lr=1", "--config", file), "model.optimizer.lr") == 0.01
    assert at(composed("--model.optimizer.lr=1", "--config", file), "model.optimizer")[1].keys() == {
        "lr",
        "weight_decay",
    }
    assert at(composed("--config", file, "--model.optimizer.lr=1"), "model.optimizer.lr") == 1


class Longer(ProbSFTModule):
    def __init__(self, *args: Any, extra: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def test_a_subclass_of_the_module_keeps_what_the_file_says(file: str) -> None:
    content = composed("--config", file, "--model", f"{__name__}.Longer", "--model.extra", "1e3")
    assert content["model"]["class_path"] == f"{__name__}.Longer"
    assert at(content, "model.extra") == "1e3"
    assert at(content, "model.optimizer.lr") == 0.01
    assert at(content, "model.objective.min_prob") == 0.2


def test_flags_below_a_list_belong_to_its_last_item() -> None:
    words = "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor a --trainer.callbacks+ LearningRateMonitor"
    first, second = composed(*words.split())["trainer"]["callbacks"]
    assert (first["init_args"], "init_args" in second) == ({"monitor": "a"}, False)


def test_a_part_is_read_from_the_folder_of_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "rows.yaml").write_text("class_path: Rows\ninit_args: {path: a.jsonl, system: '# 1'}")
    (tmp_path / "parts" / "data.yaml").write_text("train: rows.yaml")
    (tmp_path / "c.yaml").write_text("data: parts/data.yaml\ntrainer:\n")
    content = composed("--config", str(tmp_path / "c.yaml"), "--data.train.limit", "3")
    assert at(content, "data.train") == ("Rows", {"path": "a.jsonl", "system": "# 1", "limit": 3})
    assert content["trainer"] == {}


def test_a_part_with_a_list_can_be_added_to_a_list(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("- LearningRateMonitor\n- {class_path: EarlyStopping, init_args: {monitor: a}}")
    content = composed("--trainer.callbacks+", "LearningRateMonitor", "--trainer.callbacks+", f"{tmp_path}/c.yaml")
    assert [item["class_path"].rpartition(".")[2] for item in content["trainer"]["callbacks"]] == [
        "LearningRateMonitor",
        "LearningRateMonitor",
        "EarlyStopping",
    ]


def test_a_dotted_key_of_a_file_is_the_flag_of_this_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model.optimizer.init_args.lr: 1\nmodel.objective.class_path: Power")
    content = composed("--config", str(tmp_path / "c.yaml"))
    assert at(content, "model.optimizer.lr") == 1
    assert at(content, "model.objective") == ("Power", {})


def test_a_value_may_look_like_a_flag_if_it_has_spaces() -> None:
    assert composed("--name", "--- a heading")["name"] == "--- a heading"
    assert composed("--name", "-1")["name"] == "-1"


@pytest.mark.parametrize(
    "words",
    [
        "--name",
        "--name --resume",
        "--trainer.max_epochs 3 --data.batch_size null",
        "--resume=maybe",
        "--trainer 3",
        "--trainer []",
        "--model.schedule []",
        "--config=",
    ],
)
def test_what_the_parser_would_ignore_is_noticed(words: str) -> None:
    assert not Composer("fit", FLAGS, ["resume"]).compose(words.split()).sound


def test_an_option_of_a_text_that_implies_no_class_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^model\.objective\.alpha: expected a class with arguments as model\.objective"
    ):
        composed("--model.objective", "NoSuchClass", "--model.objective.alpha", "3")


@pytest.mark.parametrize("place", ["model.schedule", "model.generation", "trainer", "data.watch"])
def test_a_text_where_a_mapping_belongs_is_not_forgotten(place: str) -> None:
    with pytest.raises(UserError, match=rf"^{place}: expected a mapping, or a YAML file with one, got 'linear'"):
        composed(f"--{place}", "linear", f"--{place}.warmup", "0.2")
