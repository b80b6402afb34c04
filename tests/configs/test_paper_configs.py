"""Each of the paper's runs follows the protocol, agrees with the README's table and trains for a step on rows with the
columns that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from lit_probsft.cli import configs as recipes
from lit_probsft.cli.commands import main
from lit_probsft.cli.fit import ProbSFTCLI
from lit_probsft.data import InstructionDataModule
from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL, NegP, Threshold
from tests import tiny

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "paper").glob("*.yaml") if path.stem != "as_published")
README = (CONFIGS / "README.md").read_text()
COLUMNS = ["model", "rate", "objective", "gpu", "base", "nll", "neg_p", "threshold"]
TABLE = {
    cells[0].removeprefix("paper/"): dict(zip(COLUMNS, cells[1:], strict=True))
    for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines())
    if cells[0].startswith("paper/")
}
OBJECTIVES = {"NLL": NLL(), "-p": NegP(), "NLL where p >= .2": Threshold(NLL(), 0.2)}

# By domain: maximum document length in tokens, weight decay.
PROTOCOL = {
    "math": (3072, 0.01),
    "medical": (1024, 0.01),
    "figlet": (800, 1e-5),
    "code": (3096, 0.01),
    "languages": (1024, 1e-4),
    "instruction": (2048, 1e-4),
    "memorization": (600, 1e-5),
}
STEPPED = ["instruction_qwen2_5_14b"]  # the others are slow
ONE_EACH = {name.split("_")[0]: name for name in NAMES}.values()  # the run of each domain in the default suite
LANGUAGES = ("mar", "tel", "nep", "swa", "wol", "yor", "zul")


class Parser:
    """Parses configurations, each once, without building anything."""

    def __init__(self) -> None:
        self.cli: Any = ProbSFTCLI(["fit", f"--config={CONFIGS / 'quickstart.yaml'}"])
        self._parsed: dict[Any, Any] = {}

    def __call__(self, *files: Path | str) -> Any:
        if files not in self._parsed:
            self._parsed[files] = self.of("fit", *(f"--config={CONFIGS / file}" for file in files))
        return self._parsed[files].clone()

    def of(self, *words: str) -> Any:
        """The configuration of a command line."""
        self.cli.parse_arguments(self.cli.parser, words)
        return self.cli.config.fit

    def plain(self, *files: Path | str) -> dict[str, Any]:
        """The configuration as a run records it, without the run's name."""
        config: dict[str, Any] = yaml.safe_load(self.cli._text_of(self(*files)))
        del config["name"]
        return config

    def data(self, name: str, **rows: int) -> InstructionDataModule:
        """The data module of a run, set up with byte tokens; `rows` gives the number of puzzles per split."""
        config = self(f"paper/{name}.yaml")
        options = config.data.init_args
        options.tokenizer = Namespace(class_path="lit_probsft.data.ByteTokenizer")
        for split, count in rows.items():
            options[split].init_args.count, options.max_length = count, 1600
        options.validation_fraction = options.validation_fraction and 0.1
        module: InstructionDataModule = self.cli._parser("fit").instantiate_classes(Namespace(data=config.data)).data
        module.setup("fit")
        return module


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Parser:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parsed"))
        patch.setattr(ProbSFTCLI, "instantiate_classes", lambda self: None)
        patch.setattr(ProbSFTCLI, "_run_subcommand", lambda self, command: None)
        return Parser()


@pytest.mark.parametrize(
    "name",
    [name if name in ONE_EACH else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_every_file_follows_the_papers_protocol_and_agrees_with_the_table(name: str, parse: Parser) -> None:
    config, row = parse.plain(f"paper/{name}.yaml"), TABLE[name]
    module, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    longest, weight_decay = PROTOCOL[name.partition("_")[0]]

    hub_id = module["model"]["init_args"]["model_name_or_path"].rpartition("/")[2]
    plain = re.sub(r"\W", "", hub_id.lower().removesuffix("-base"))
    assert plain == re.sub(r"\W", "", row["model"].lower())
    assert re.sub(r"\W|_", "", name.partition("_")[2]) == plain
    assert module["model"]["init_args"]["gradient_checkpointing"]

    optimizer = module["optimizer"]["init_args"]
    assert module["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert optimizer["lr"] == (2e-5 if hub_id == "Llama-3.1-8B" else 5e-5) == float(row["rate"])
    assert (optimizer["betas"], optimizer["weight_decay"]) == ([0.9, 0.95], weight_decay)
    assert (module["schedule"]["decay"], module["schedule"]["warmup"], module["schedule"]["final"]) == (
        "cosine",
        0.1,
        0.0,
    )
    assert module["normalize"] == "tokens"
    assert (trainer["max_epochs"], trainer["gradient_clip_val"], trainer["strategy"]) == (1, 1.0, "fsdp2")
    assert config["validate_every"] == 0.25
    assert data["batch_size"] * trainer["accumulate_grad_batches"] * 8 == 256
    assert (data["max_length"], data["tokenizer"]) == (longest, None)
    assert data["format"] == ("chat" if hub_id.startswith("Qwen") else "plain")
    objective = OBJECTIVES[row["objective"]].as_config()
    assert module["objective"]["class_path"] == objective["class_path"]
    given = module["objective"].get("init_args", {})
    assert given.get("min_prob") == objective.get("init_args", {}).get("min_prob")


@pytest.mark.parametrize("name", NAMES)
def test_every_header_has_the_command_and_the_tables_figures(name: str) -> None:
    header = [line for line in (CONFIGS / "paper" / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    row = TABLE[name]
    assert f"#   python -m lit_probsft fit --config configs/paper/{name}.yaml" in header
    labels = {"base": "base", "nll": "NLL", "neg_p": "-p", "threshold": "NLL where p >= .2"}
    (paper,) = [line for line in header if line.startswith("# Paper (")]
    assert (
        paper.partition("): ")[2] == ", ".join(f"{word} {row[key]}" for key, word in labels.items() if row[key]) + "."
    )
    assert f"{row['model']} with {row['objective']}," in header[0]


def test_the_objective_of_each_file_is_the_papers_best() -> None:
    """Compared after training on wrong labels where the paper has both figures; a win rate is that of -p over NLL."""
    assert sorted(TABLE) == NAMES
    words = {"nll": "NLL", "neg_p": "-p", "threshold": "NLL where p >= .2"}
    for name, row in TABLE.items():
        column = 1 if name.startswith("memorization") else 0
        figures = {words[key]: float(row[key].split("/")[column]) for key in words if row[key]}
        figures.setdefault("NLL", 50.0)
        assert max(figures, key=figures.__getitem__) == row["objective"], name


def test_the_memory_table_counts_sixteen_bytes_per_parameter() -> None:
    found = re.findall(r"\| (parts/model/\w+\.yaml) \| ([\w.-]+) \| ([\d.]+)B \| (\d+) GB \| ([\d.]+) GB \|", README)
    assert {path for path, *_ in found} == {f"parts/model/{path.name}" for path in (CONFIGS / "parts/model").iterdir()}
    by_model = {model: f"{each} GB" for _, model, _, _, each in found}
    assert {row["gpu"] == by_model[row["model"]] for row in TABLE.values()} == {True}
    for _, model, parameters, whole, each in found:
        size_in_name = float(re.findall(r"([\d.]+)B$", model)[0])
        assert abs(float(parameters) / size_in_name - 1) < 0.1
        assert abs(float(whole) - 16 * float(parameters)) < 0.6
        assert abs(float(each) - 2 * float(parameters)) < 0.06


def test_as_published_changes_only_two_settings(parse: Parser) -> None:
    recipe = "paper/math_qwen2_5_math_7b.yaml"
    plain, published = parse.plain(recipe), parse.plain(recipe, "paper/as_published.yaml")
    assert published["model"]["init_args"].pop("normalize") == "micro_batch"
    assert published["data"]["init_args"].pop("length_pool") == 0
    assert (plain["model"]["init_args"].pop("normalize"), plain["data"]["init_args"].pop("length_pool")) == (
        "tokens",
        50,
    )
    assert published == plain
    header = (CONFIGS / "paper/as_published.yaml").read_text()
    assert re.findall(r"^# (\d) ", header, re.M) == list("12345678")  # all eight differences are listed


def test_the_other_commands_in_headers_parse(parse: Parser) -> None:
    """The commands in headers that are not just `fit` with the file."""
    text = (CONFIGS / "paper/as_published.yaml").read_text()
    command = re.sub(r"\\\n#", "", text).partition("lit_probsft ")[2].splitlines()[0]
    args = [
        str(CONFIGS / word.removeprefix("configs/")) if word.endswith(".yaml") else word for word in command.split()
    ]
    config = parse.of(*args)
    assert (config.name, config.model.init_args.normalize) == ("as_published", "micro_batch")
    assert 4 * int(config.trainer.devices) * config.trainer.accumulate_grad_batches == 256
    texts = {name: (CONFIGS / "paper" / f"{name}.yaml").read_text() for name in NAMES}
    flags = {name: re.findall(r"(--model.optimizer.lr) (\S+)\.$", text, re.M) for name, text in texts.items()}
    others = {name: float(found[0][1]) for name, found in flags.items() if found}
    assert others == {"languages_llama_3_1_8b": 5e-5, "instruction_qwen2_5_3b": 2e-5, "instruction_qwen2_5_7b": 5e-6,
                      "instruction_qwen2_5_14b": 1e-6, "memorization_qwen2_5_14b": 2e-5}  # fmt: skip
    path = CONFIGS / "paper/instruction_qwen2_5_14b.yaml"
    config = parse.of("fit", f"--config={path}", "--model.optimizer.lr", "1e-6")
    assert config.model.init_args.optimizer.init_args.lr == 1e-6


def test_the_llama_recipes_equal_the_papers_run_except_for_the_objective(parse: Parser) -> None:
    pair = parse.plain("paper/math_llama_3_1_8b.yaml")
    assert parse.plain("llama_neg_p.yaml") == pair
    other = parse.plain("llama_power.yaml")
    other["model"]["init_args"]["objective"] = pair["model"]["init_args"]["objective"]
    assert other == pair


@pytest.mark.parametrize("domain", ["math", "medical", "figlet", "languages"])
def test_chat_and_plain_data_of_a_domain_differ_only_in_format(domain: str) -> None:
    chat, plain = (
        yaml.safe_load((CONFIGS / f"parts/data/{domain}_{form}.yaml").read_text()) for form in ("chat", "plain")
    )
    assert (chat["init_args"].pop("format"), plain["init_args"].pop("format")) == ("chat", "plain")

    def bare(value: Any) -> Any:
        """Without system texts, and with prompt templates reduced to their column."""
        if not isinstance(value, dict):
            return value
        return {
            key: inner.removesuffix("\n").replace("{input}", "input") if key == "prompt" else bare(inner)
            for key, inner in value.items()
            if key != "system"
        }

    assert bare(chat) == bare(plain)


def test_a_copied_recipe_parses_the_same_as_the_packaged_one(parse: Parser, tmp_path: Path) -> None:
    written = recipes.copy("paper/instruction_qwen2_5_7b", tmp_path)
    assert written[0] == tmp_path / "paper/instruction_qwen2_5_7b.yaml"
    assert len(written) == 5
    assert parse.plain(written[0]) == parse.plain("paper/instruction_qwen2_5_7b.yaml")


# --- training, with only the hub replaced

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def hub_rows(path: str, name: str | None, split: str) -> list[dict[str, Any]]:
    """Rows with the columns of a dataset on the hub."""
    asked = [(f"What follows {word} {i}?", f"It is {i + 1}.") for i in range(5) for word in NUMBERS]
    key = (path, name, split)
    if path == "akoksal/muri-it-language-split":
        assert name in LANGUAGES
        return [{"input": f"{name}: {q}", "output": a, "dataset_name": "x", "split": split} for q, a in asked[:8]]
    if path == "allenai/openbookqa":
        letters = ["A", "B", "C", "D"]
        return [
            {
                "id": str(i), "question_stem": f"{split}: {q}", "choices": {"text": NUMBERS[:4], "label": letters},
                "answerKey": letters[i % 4], "fact1": a, "humanScore": 1.0, "clarity": 2.0, "turkIdAnonymized": "x",
            }
            for i, (q, a) in enumerate(asked)
        ]  # fmt: skip
    makers: dict[Any, Any] = {
        ("gaotang/numina-cot-subset-67k", None, "train"): lambda q, a: {
            "data_source": "x", "extra_info": {"index": 0, "question": q, "answer": a}
        },
        ("gaotang/medical_sft_processed", None, "train"): lambda q, a: {
            "extra_info": {"question": q, "answer_raw": a, "answer_letter": "A", "answer_thinking": "Hm."}
        },
        ("ise-uiuc/Magicoder-OSS-Instruct-75K", None, "train"): lambda q, a: {
            "lang": "python", "seed": "x", "problem": q, "solution": a
        },
        ("Magpie-Align/Magpie-Pro-300K-Filtered", None, "train"): lambda q, a: {
            "uuid": "x", "instruction": q, "response": a,
            "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
        },
        ("WizardLMTeam/WizardLM_evol_instruct_70k", None, "train"): lambda q, a: {"instruction": q, "output": a},
    }  # fmt: skip
    return [makers[key](q, a) for q, a in asked]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def load(path: str, name: str | None = None, *, split: str, **options: Any) -> Any:
        return datasets.Dataset.from_list(hub_rows(path, name, split))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)


FORMS = sorted({(name.partition("_")[0], "qwen" in name) for name in NAMES})
FEW = {"train": 12, "validation": 4}


@pytest.mark.parametrize(("domain", "chat"), FORMS)
def test_rows_of_the_hub_become_the_right_prompts_and_supervised_text(
    domain: str, chat: bool, hub: None, parse: Parser
) -> None:
    name = next(name for name in NAMES if name.startswith(domain) and ("qwen" in name) == chat)
    data = parse.data(name, **(FEW if domain == "figlet" else {}))
    decode, documents = data.tokenizer.decode, data.documents("train")
    text, labels = decode([int(token) for token in documents[0][0]]), [int(label) for label in documents[0][1]]
    supervised = decode([label for label in labels if label >= 0])
    asked = text[: text.index(supervised)]
    first = {"languages": "mar: What follows zero 0?", "memorization": "train: What follows zero 0?\nA. zero\nB. one",
             "figlet": "What word does this say?"}.get(domain, "What follows zero 0?")  # fmt: skip
    boxed = "\nPlease reason step by step, and put your final answer within \\boxed{}." * (
        domain in ("math", "medical")
    )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" * bool(boxed)
    if chat:
        assert asked.startswith(f"{system}<|im_start|>user\n{first}")
        assert asked.endswith(f"{boxed}<|im_end|>\n<|im_start|>assistant\n")
    else:
        assert asked.startswith(first)
        assert asked.endswith(f"{boxed}\n")
    assert supervised.endswith("<|im_end|>")
    if domain == "memorization":
        answers = [chr(documents[i][0][-3]) for i in range(50)]
        assert 5 <= sum(label != "ABCD"[i % 4] for i, label in enumerate(answers)) <= 25
        clean = data.documents("validation")
        assert [chr(clean[i][0][-3]) for i in range(50)] == ["ABCD"[i % 4] for i in range(50)]
    elif domain != "figlet":
        assert supervised == "It is 1.<|im_end|>"
        assert data.report["train"]["kept"] == {"languages": 50, "instruction": 90}.get(domain, 45)
    if domain == "languages":
        assert data.sources_of("train") == LANGUAGES
    if domain == "instruction":
        quotas = data._splits["train"].loaded.source.quotas({"magpie": 300_000, "evol": 70_000})
        assert quotas == {"magpie": 70_000, "evol": 70_000}


def test_figlet_uses_the_papers_rows(parse: Parser) -> None:
    for name in (name for name in NAMES if name.startswith("figlet")):
        options = parse(f"paper/{name}.yaml").data.init_args
        rows = {split: options[split].init_args.as_dict() for split in ("train", "validation", "test")}
        starts = {split: (one.pop("start"), one.pop("count")) for split, one in rows.items()}
        assert starts == {"train": (0, 40_000), "test": (40_000, 5_000), "validation": (45_000, 256)}
        spaced = {"seed": 42, "min_word_len": 2, "max_word_len": 5, "space_letters": True, "system": None}
        assert all(one == spaced for one in rows.values())


def test_a_column_missing_on_the_hub_is_refused_by_name(hub: None, parse: Parser) -> None:
    """Also where bad rows are skipped."""
    for name, column in (("code_qwen2_5_coder_7b", "solutions"), ("math_deepseek_math_7b", "extra_info.answers")):
        parse(f"paper/{name}.yaml")
        kept = parse._parsed[(f"paper/{name}.yaml",)]
        other = kept.clone()
        other.data.init_args.train.init_args.response = column
        parse._parsed[(f"paper/{name}.yaml",)] = other
        with pytest.raises(UserError, match=f"no column '{column}'"):
            parse.data(name)
        parse._parsed[(f"paper/{name}.yaml",)] = kept


@pytest.mark.parametrize(
    "name", [name if name in STEPPED else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_each_run_trains_a_step(name: str, hub: None) -> None:
    model = {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "max_position_embeddings": 2048}}}
    few = {
        "figlet": ["--data.train.count=40", "--data.validation.count=4", "--data.max_length=1600"],
        "memorization": [],
    }.get(name.partition("_")[0], ["--data.validation_fraction=0.1"])
    cli: Any = main(
        ["fit", f"--config={CONFIGS / 'paper' / name}.yaml", f"--model.model={json.dumps(model)}",
         *few, "--data.tokenizer=ByteTokenizer", "--trainer.strategy=auto",
         "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.devices=1",
         "--trainer.enable_progress_bar=false", "--validate_every=epoch", "--checkpoints.export=none",
         "--trainer.enable_checkpointing=false"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    assert (Path("runs") / name).is_dir()
    decays = {group["weight_decay"] for group in cli.trainer.optimizers[0].param_groups}
    assert decays == {PROTOCOL[name.partition("_")[0]][1], 0}
    assert cli.model.objective == OBJECTIVES[TABLE[name]["objective"]]
