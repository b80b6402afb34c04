"""The benchmarks run at tiny sizes; their times are not tested."""

import argparse
import json
import math

import pytest
import torch

from benchmarks import capability, generation, gsm8k, harness, head, objectives, packing, step, templates, tokenization
from lit_probsft.data import ByteTokenizer
from tests import tiny
from tests.data.chat_templates import CHATML, MARKED, REWRITES_HISTORY


def call_a():
    return {"value": 1.0}


def call_b():
    return {"value": 1.0 + 1e-9}


def test_variants_take_turns_and_ratios_compare_times_of_one_round():
    order = []

    def variant(name):
        return harness.Variant(name, lambda: order.append(name) or {"value": 1.0})

    timings = harness.time_variants([variant("a"), variant("b")], rounds=2, report=lambda line: None)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(t.seconds) for t in timings.values()] == [2, 2]
    # The second round is three times as slow for both, which leaves the ratio unchanged.
    assert harness.ratios({"a": [1.0, 3.0, 1.0], "b": [2.0, 6.0, 8.0]}, "a") == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(("value", "agrees"), [(2.0, True), (2.0 + 1e-6, True), (2.1, False), (math.nan, False)])
def test_agreement_names_the_variant_that_differs(value, agrees):
    assert harness.agreement({"a": 2.0, "b": value}, 2.0, 1e-6)["agree"] is agrees


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_head_variant_computes_the_same_nll_and_its_gradients(dtype):
    problem = head.make_problem(tokens=48, hidden=16, vocab=64, dtype=dtype, device="cpu")
    expected, norms = head.exact_nll(problem), {}
    for name, call in head.calls().items():
        problem.forget()
        values = call(problem)
        if "nll" in values:
            assert values["nll"] == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 2e-2), name
        norms[name] = problem.gradient_norms()
    close = {"rel": 1e-5 if dtype == "float32" else 3e-2}
    assert norms["ours, NLL"] == pytest.approx(norms[head.FULL], **close)
    if head.TORCH_TOKENS in norms:
        assert norms["ours, NegP"] == pytest.approx(norms[head.TORCH_TOKENS], **close)


def test_head_writes_a_result_that_describes_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "peak_extra_bytes", lambda *_: harness.MIB)  # starting a process takes seconds
    threads = torch.get_num_threads()
    try:
        path = head.run(head.parse(f"--tokens 24 --hidden 8 --vocab 32 --rounds 2 --results {tmp_path}".split()))
    finally:
        torch.set_num_threads(threads)
    result = json.loads(path.read_text())
    assert result["nll_agreement"]["agree"]
    assert result["arguments"]["tokens"] == 24
    assert {"date", "machine", "versions", "commit", "command", "time_ratios", "memory_ratios"} <= result.keys()
    assert all(len(v["rounds"]["seconds"]) == 2 for v in result["variants"].values())
    assert "ours, NegP" in capsys.readouterr().out


def _allocate(mib):
    return lambda: torch.ones(mib * harness.MIB // 4)


@pytest.mark.slow
def test_peak_memory_counts_only_what_the_call_adds():
    assert harness.peak_extra_bytes(_allocate, 64) / harness.MIB == pytest.approx(64, abs=4)


def test_the_gate_sums_a_block_and_then_waits(monkeypatch):
    class Connection:
        def __init__(self):
            self.orders, self.sent = [2, 1], []

        def recv(self):
            if not self.orders:
                raise EOFError
            return self.orders.pop(0)

        def send(self, message):
            self.sent.append(message[1])

    gate = harness.Gate(connection := Connection())
    gate.open()
    gate.step({"tokens": 3})
    assert not connection.sent
    gate.step({"tokens": 4})
    with pytest.raises(EOFError):
        gate.step({"tokens": 5})
    assert [block["tokens"] for block in connection.sent] == [7, 5]


@pytest.mark.slow
def test_loops_take_turns_in_their_own_processes():
    loops = [harness.Loop(name, _count, (number,)) for number, name in enumerate("ab")]
    blocks = harness.time_loops(loops, rounds=2, steps=3, report=lambda line: None)
    assert [[block["tokens"] for block in found] for found in blocks.values()] == [[0, 0], [3, 3]]
    with pytest.raises(RuntimeError, match="the loop has ended"):
        harness.time_loops([harness.Loop("a", _stop)], rounds=1, steps=1, report=lambda line: None)


def _count(gate, tokens):
    gate.open()
    while True:
        gate.step({"tokens": tokens})


def _stop(gate):
    gate.open()


@pytest.fixture
def tiny_step(tmp_path):
    rows = [{"q": f"How much is {i} + {i}?" + " Please." * (i % 5), "a": f"It is {2 * i}."} for i in range(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = step.parse(["--train", str(file), "--prompt", "q", "--response", "a", "--cache", str(tmp_path / "cache")])
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    options.model, options.vocab, options.sequences = {**options.model, **small}, 700, 4
    return options


def test_the_probe_sees_every_token_once_in_a_pass(tiny_step):
    class Gate:
        def __init__(self):
            self.tokens, self.steps = 0, 0

        def open(self):
            pass

        def step(self, counts):
            self.tokens, self.steps = self.tokens + counts["tokens"], self.steps + 1
            if self.steps == 6:  # micro-batches of four rows
                raise EOFError

    data = step.make_data(tiny_step, 0)
    gate = Gate()
    threads = torch.get_num_threads()
    try:
        with pytest.raises(EOFError):
            capability.probe_loop(gate, tiny_step)
    finally:
        torch.set_num_threads(threads)
    assert gate.tokens == data.report["train"]["tokens"]


def test_our_loss_equals_that_of_transformers_and_every_plain_loop_steps(tiny_step, monkeypatch):
    monkeypatch.setattr(step, "has_trl", lambda: False)
    compared = step.same_loss(tiny_step)
    assert compared["agree"], compared

    class Gate:
        def open(self):
            self.seen = []

        def step(self, counts):
            self.seen.append(counts)
            if len(self.seen) == 7:  # one more step than an epoch has
                raise StopIteration

    for loop in step.loops(tiny_step):
        if loop.run is step.plain_loop:
            gate = Gate()
            with pytest.raises(StopIteration):
                loop.run(
                    gate,
                    argparse.Namespace(**{**vars(tiny_step), "threads": torch.get_num_threads()}),
                    *loop.arguments[1:],
                )
            assert all(0 < c["supervised"] < c["tokens"] <= c["positions"] for c in gate.seen)


def test_unigram_entropy_counts_supervised_tokens_after_the_shift():
    # The first column is never predicted; two tokens, each twice.
    labels = torch.tensor([[9, 5, 5, -100], [9, 7, -100, 7]])
    entropy, tokens = gsm8k.unigram_entropy([{"labels": labels[:1]}, {"labels": labels[1:]}])
    assert (entropy, tokens) == (pytest.approx(math.log(2)), 4)


def test_all_packing_variants_get_the_same_lengths(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(harness, "peak_extra_bytes", lambda prepare, *arguments: prepare(*arguments)() * harness.MIB)
    monkeypatch.setattr(packing, "variants", lambda: {"ours": packing.ours, "alone": lambda lengths: lengths.__len__})
    path = packing.run(packing.parse(f"--sizes 300 --rounds 2 --results {tmp_path}".split()))
    data = json.loads(path.read_text())["data"]
    assert data.keys() == {"short 300", "wide 300"}
    for facts in data.values():
        ours, alone = facts["variants"]["ours"], facts["variants"]["alone"]
        assert facts["least_packs"] <= ours["packs"] < alone["packs"] == 300
        assert ours["share_full"] == pytest.approx(facts["tokens"] / (2048 * ours["packs"]), rel=1e-4)
        assert len(ours["rounds"]) == 2
        assert facts["resume"].keys() == {"first", "last"}
    assert "share full" in capsys.readouterr().out


def test_all_tokenization_variants_make_the_same_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "in_fresh_process", lambda function, *arguments: function(*arguments))
    variants = {name: make for name, make in tokenization.variants().items() if name != "trl"}  # which takes its time
    monkeypatch.setattr(tokenization, "variants", lambda: variants)
    flags = f"--rows 12 --rounds 2 --processes 1 --tokenizers byte --results {tmp_path}"
    path = tokenization.run(tokenization.parse(flags.split()))
    data = json.loads(path.read_text())["data"]
    assert data.keys() == {"single, byte, 1", "multi, byte, 1"}
    for facts in data.values():
        assert facts["agree"]
        assert 0 < facts["supervised"] < facts["tokens"]
        assert facts["variants"].keys() == variants.keys() == facts["time_ratios"].keys()
        assert all(len(numbers["rounds"]["cpu_seconds"]) == 2 for numbers in facts["variants"].values())
    assert data["single, byte, 1"]["documents"] == 12
    assert data["multi, byte, 1"]["documents"] == 3
    assert "rows/s per core" in capsys.readouterr().out


def test_our_greedy_answers_are_those_of_generate(tmp_path, monkeypatch, capsys):
    model = tiny.model(initializer_range=0.5)
    monkeypatch.setattr(generation.transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    tokenizer = ByteTokenizer().load(list)
    monkeypatch.setattr(generation.transformers.AutoTokenizer, "from_pretrained", lambda _: tokenizer)
    options = ["--prompts", "2", "--max-new-tokens", "3", "--rounds", "1", "--sampled-tokens", "2", "--lengths", "8"]
    options += ["--model", "tiny", "--shared", "1", "--results", str(tmp_path)]
    result = json.loads(generation.run(generation.parse(options)).read_text())
    parts = result["parts"]
    assert (parts["greedy"]["answers"], parts["greedy"]["different"]) == (2, 0)
    drawn = parts["sampled, 8 tokens"]["variants"]
    assert [variant["values"]["tokens"] for variant in drawn.values()] == [32, 32]
    assert parts["sampled, 1 prompts x 16"]["variants"]["ours"]["values"]["tokens"] <= 48
    assert "16 answers to a prompt" in capsys.readouterr().out
    one, other = [5, 6, 7], [5, 6, 8]
    logits = model(input_ids=torch.tensor([[1, 2, 5, 6]])).logits[0, -1].topk(2).values.tolist()
    assert generation.gap(model, [1, 2], one, other) == pytest.approx(logits[0] - logits[1], rel=1e-4)


def test_the_readmes_picture_shows_each_of_its_objectives(tmp_path):
    objectives.draw(tmp_path / "picture.svg")
    for picture in (tmp_path / "picture.svg", objectives.PICTURE):
        assert all(f">{name}<" in picture.read_text() for name in objectives.OBJECTIVES)


def test_templates_are_compared_with_their_marked_variants_and_with_their_prompts(tmp_path, capsys):
    longer = MARKED.replace("+ '<|im_end|>\n' }}{% endgen", "+ ' or so<|im_end|>\n' }}{% endgen")
    written = {"lfm2": CHATML, "lfm2_training": MARKED, "lfm2_v2": REWRITES_HISTORY, "lfm2_v2_training": MARKED}
    written |= {"qwen3": CHATML, "qwen3_training": longer}
    folder = tmp_path / "chat_templates"
    folder.mkdir()
    for name, template in written.items():
        (folder / f"{name}.jinja").write_text(template)
    path = templates.run(templates.parse(["--trl", str(tmp_path), "--results", str(tmp_path)]))
    result = json.loads(path.read_text())
    found = {name: [cell["verdict"] for cell in cells.values()] for name, cells in result["templates"].items()}
    assert found["lfm2"] == found["lfm2_training"] == ["exact", "exact", "exact", "-", "-"]
    assert found["lfm2_v2"] == ["exact", "refused", "refused", "-", "-"]
    assert found["qwen3"] == ["wrong", "wrong", "wrong", "-", "-"]  # the marked variant has words of its own
    assert "1 refused, 0 disputed, 1 wrong" in capsys.readouterr().out
