"""A user's path with GSM8K and PubMedQA rows: one configuration for preview, fit and predict."""

import json
import sys

import pytest
import yaml

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from tests import tiny

CONFIG = """
model:
  model: {{class_path: RandomCausalLM, init_args: {{config: {model}}}}}
  objective: NLL
  generation: {{max_new_tokens: 3}}
data:
  train: {{class_path: Rows, init_args: {rows}}}
  tokenizer: {{class_path: BPETokenizer, init_args: {{vocab_size: 400}}}}
  validation_fraction: 0.25
  max_length: 256
  batch_size: 4
trainer: {{accelerator: cpu, max_steps: 2, enable_progress_bar: false}}
"""

ROW_FUNCTION = """
def pubmedqa(row):
    contexts = "\\n".join(row["CONTEXTS"])
    return {
        "prompt": f"{contexts}\\n\\nQuestion: {row['QUESTION']}\\nAnswer yes, no or maybe.",
        "response": f"{row['LONG_ANSWER']}\\n\\nAnswer: {row['final_decision']}",
    }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a configuration for rows like GSM8K's, and one for rows like PubMedQA's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rows", raising=False)
    steps = [f"Ann has {i} + 2 = <<{i}+2={i + 2}>>{i + 2} pears.\n#### {i + 2}" for i in range(16)]
    problems = [
        {"question": f"Ann has {i} pears and buys 2. How many?", "answer": step} for i, step in enumerate(steps)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    papers = {
        f"2164{i}": {
            "QUESTION": f"Does drug {i} help?",
            "CONTEXTS": [f"We gave drug {i} to mice.", "Most were well."],
            "LABELS": ["BACKGROUND", "RESULTS"],
            "MESHES": ["Mice"],
            "reasoning_required_pred": "yes",
            "final_decision": ("yes", "no", "maybe")[i % 3],
            "LONG_ANSWER": "It may.",
        }
        for i in range(16)
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(papers, indent=4))
    (tmp_path / "my_rows.py").write_text(ROW_FUNCTION)
    gsm8k = {"path": "train.jsonl", "prompt": "{question}\nThink step by step.", "response": "answer"}
    pubmedqa = {"path": "ori_pqal.json", "row_function": "my_rows.pubmedqa"}
    for name, rows in (("gsm8k", gsm8k), ("pubmedqa", pubmedqa)):
        content = CONFIG.format(model=json.dumps(tiny.LLAMA), rows=json.dumps(rows))
        (tmp_path / f"{name}.yaml").write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "prompt_end", "response_part"),
    [
        ("gsm8k", "How many?\nThink step by step.<|im_end|>", "#### "),
        pytest.param(
            "pubmedqa", "Most were well.\n\nQuestion: Does drug", "It may.\n\nAnswer: ", marks=pytest.mark.slow
        ),
    ],
    ids=["gsm8k", "pubmedqa"],
)
def test_preview_fit_and_predict_from_one_configuration(folder, capsys, name, prompt_end, response_part):
    config = f"--config={name}.yaml"
    main(["preview", config])
    seen = capsys.readouterr().out
    assert prompt_end in seen.partition("⟦")[0]
    assert response_part in seen.partition("⟦")[2].partition("<|im_end|>⟧")[0]
    assert "no problems found" in seen

    main(["fit", config])
    data = json.loads((folder / "runs" / name / "run.json").read_text())["data"]
    assert [data[split]["kept"] for split in ("train", "validation")] == [12, 4]

    main(["predict", config])
    answers = [json.loads(line) for line in (folder / "runs" / name / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 4
    assert all(prompt_end.partition("<|")[0] in row["prompt"] and response_part in row["reference"] for row in answers)


def test_text_flags_keep_the_text_that_was_typed(folder):
    typed = {"prompt": "Question: {question}", "response": "{answer}", "system": "null", "limit": "null"}
    main(["fit", "--config=gsm8k.yaml", *(f"--data.train.{field}={text}" for field, text in typed.items())])
    config = yaml.safe_load((folder / "runs" / "gsm8k" / "config.yaml").read_text())
    rows = config["data"]["init_args"]["train"]["init_args"]
    assert {field: rows[field] for field in typed} == {**typed, "system": None, "limit": None}


def test_a_dictionary_that_does_not_hold_rows_gives_a_short_message(folder):
    (folder / "ground_truth.json").write_text(json.dumps({str(i): "yes" for i in range(500)}))
    with pytest.raises(
        UserError, match="^data.train.prompt: no column 'QUESTION' among '0', .* and 480 more"
    ) as caught:
        flags = [
            "--data.train.path=ground_truth.json",
            "--data.train.row_function=null",
            "--data.train.prompt=QUESTION",
        ]
        main(["preview", "--config=pubmedqa.yaml", *flags, "--data.train.response=x", "--data.validation_fraction=0"])
    assert len(str(caught.value)) < 400
