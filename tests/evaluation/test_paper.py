"""The paper's protocols."""

from __future__ import annotations

import pytest

from lit_probsft import UserError
from lit_probsft.evaluation.paper import PROTOCOLS, apply_protocols, paper_means
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.tasks import tasks_named
from lit_probsft.evaluation.tasks.registry import BENCHMARKS


def test_tasks_are_asked_as_the_paper_asks_them() -> None:
    tasks, settings = apply_protocols(
        tasks_named("aime24,medical/NEJM,figlet"), Settings(temperature=0.3, top_p=0.9, system="mine", seed=5)
    )
    assert settings["aime24"] == Settings(16, 1.0, 1.0, 4096, 5, "You are a helpful assistant.")
    assert settings["figlet"].max_new_tokens == 5
    assert settings["medical/NEJM"].temperature == 0
    assert tasks["medical/NEJM"].last_named
    assert tasks["medical/NEJM"].groups == ["NEJM"]
    (message,) = tasks["aime24"].messages({"problem": "1+1?"})
    assert message["content"].startswith("1+1?\nPlease reason step by step")
    assert {*PROTOCOLS} < {*BENCHMARKS}


def test_tasks_that_the_paper_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match=r"^paper: expected only tasks of the paper, math500, .*mmlu_prox, got gsm8k$"):
        apply_protocols(tasks_named("math500,gsm8k"), Settings())


def test_the_papers_means_count_every_task_and_every_source_once() -> None:
    # Qwen2.5-Math-1.5B with -p: the columns give 32.62
    printed = {"math500": 65.27, "minerva_math": 26.18, "olympiadbench": 26.66, "aime24": 6.88, "amc23": 38.13}
    tasks = {name: {"accuracy": {"mean": value}, "group_mean": None} for name, value in printed.items()}
    tasks["medical"] = {"accuracy": {"mean": 0.9}, "group_mean": {"mean": 0.5}}
    means = paper_means(tasks)
    assert means == {"math": pytest.approx(32.62, abs=0.005), "medical": 0.5}
    del tasks["aime24"]
    assert [*paper_means(tasks)] == ["medical"]
