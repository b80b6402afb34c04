"""Every kind of adapter: the start of training, gradients, the merged model and peft's folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.adapters import adapters_off, is_adapter, peft_name
from lit_probsft.model.forward import forward_with_objective, install_head, outputs_of
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.objectives import ASFT, NLL
from lit_probsft.run.export import export_model
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.cli.test_fit import config, slow
from tests.model.test_lora import IDS, logits, plain

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True, "dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head alone": {"target_modules": ["lm_head"]},
    "dora head": {"target_modules": ["up_proj", "lm_head"], "dora": True},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
    "norms": {"modules_to_save": ["input_layernorm", "down_proj"]},
}
CASES = [("llama", "rslora"), ("llama", "dora head"), ("llama", "whole"), ("gpt2", "dora"), ("tied", "whole")]
REST = [*(("llama", kind) for kind in KINDS), ("gemma2", "dora")]
EVERY = pytest.mark.parametrize(
    ("name", "kind"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST if case not in CASES)]
)


def lora_of(name: str, kind: str, **options: Any) -> LoRA:
    fields = {"r": 4, "alpha": 3.0, **KINDS[kind], **options}
    if name == "tied" and kind == "whole":
        fields["modules_to_save"] = ["embed_tokens"]
    return LoRA(**fields)


def adapted(name: str, lora: LoRA, dtype: torch.dtype = torch.float32) -> Any:
    model = plain(name, dtype)
    inject_adapters(model, lora)
    install_head(model)
    return model


def trained(model: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def disturb(model: Any) -> None:
    """Change all trained parameters: no adapter is zero, and no row keeps its length."""
    for name, parameter in trained(model).items():
        if "magnitude" in name:
            parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
        elif is_adapter(name):
            nn.init.normal_(parameter, std=0.2)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def base_folder(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    plain(name, dtype).save_pretrained(folder / "base")
    ByteTokenizer().load(list).save_pretrained(folder / "base")
    return folder / "base"


def exported(model: Any, lora: LoRA, folder: Path) -> Path:
    base = PretrainedCausalLM(str(folder / "base"))
    out = folder / f"out-{lora.export}"
    export_model(model, ByteTokenizer().load(list), out, lora=lora, base=base)
    return out


@EVERY
def test_training_starts_at_the_base_model(name: str, kind: str) -> None:
    model = adapted(name, lora_of(name, kind))
    torch.testing.assert_close(logits(model), logits(plain(name)), rtol=1e-5, atol=1e-6)


@EVERY
def test_the_merged_model_computes_the_same_as_the_adapters(name: str, kind: str, tmp_path: Path) -> None:
    lora = lora_of(name, kind)
    model = adapted(name, lora)
    disturb(model)
    expected = logits(model)
    assert float((expected - logits(plain(name))).abs().max()) > 1e-2
    found = AutoModelForCausalLM.from_pretrained(exported(model, lora, tmp_path))
    torch.testing.assert_close(logits(found), expected, rtol=1e-5, atol=1e-5)
    assert found.state_dict().keys() == plain(name).state_dict().keys()


@EVERY
def test_peft_and_a_new_run_load_adapters_without_their_base(name: str, kind: str, tmp_path: Path) -> None:
    base, lora = base_folder(name, tmp_path), lora_of(name, kind, export="adapter")
    model = adapted(name, lora)
    disturb(model)
    expected, out = logits(model), exported(model, lora, tmp_path)
    assert not (out / "config.json").exists()
    assert AutoTokenizer.from_pretrained(out).chat_template
    loaded = {
        "PeftModel": peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(out)),
        "AutoPeft": peft.AutoPeftModelForCausalLM.from_pretrained(out),
        "merged": PretrainedCausalLM(str(out)).load(None, torch.float32),
        "start": adapted(name, replace(lora, start=str(out))),
    }
    for how, found in loaded.items():
        torch.testing.assert_close(logits(found), expected, rtol=1e-5, atol=1e-5, msg=lambda m, h=how: f"{h}: {m}")


@EVERY
def test_gradients_equal_those_of_pefts_own_model(name: str, kind: str, tmp_path: Path) -> None:
    base_folder(name, tmp_path, torch.float64)
    lora = lora_of(name, kind, export="adapter")
    model = adapted(name, lora, torch.float64)
    disturb(model)
    theirs = peft.PeftModel.from_pretrained(
        plain(name, torch.float64), str(exported(model, lora, tmp_path)), is_trainable=True
    )
    theirs.double().eval()
    labels = IDS.clone()
    labels[0, :2] = -100
    loss = nn.functional.cross_entropy(theirs(input_ids=IDS).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    head = forward_with_objective(model, IDS, HeadRequest(labels, NLL()))[1]
    head.backward()
    torch.testing.assert_close(head, loss, rtol=1e-10, atol=1e-10)
    found: dict[str, torch.Tensor] = {}
    for n, p in theirs.named_parameters():
        if p.requires_grad and p.grad is not None:
            stem = n.replace(".modules_to_save.default", "").removeprefix("base_model.model.")
            found[peft_name(stem)] = p.grad
    ours = {peft_name(n): p.grad for n, p in trained(model).items()}
    if name == "tied":  # peft has two copies of a tied weight
        both = [n for n in found if "embed_tokens" in n or "lm_head" in n]
        assert len(both) == 2
        total = sum(found.pop(n) for n in both)
        found[next(n for n in ours if "embed_tokens" in n)] = total
    assert ours.keys() == found.keys()
    for n, gradient in ours.items():
        assert gradient is not None, n
        assert float(gradient.abs().max()) > 1e-9, n
        torch.testing.assert_close(gradient, found[n], rtol=1e-7, atol=1e-10, msg=lambda m, w=n: f"{w}: {m}")


@pytest.mark.parametrize("kind", ["plain", "dora", "head", "dora head"])
def test_a_model_with_its_adapters_off_equals_its_base(kind: str) -> None:
    model, base = adapted("llama", lora_of("llama", kind)), plain("llama")
    install_head(base)
    disturb(model)
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    with adapters_off(model):
        assert {name: p.requires_grad for name, p in model.named_parameters()} == required
        assert torch.equal(logits(model), logits(base))
        ours = outputs_of(model, IDS, IDS)
    theirs = outputs_of(base, IDS, IDS)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert torch.equal(ours.weight, theirs.weight)
    assert not torch.equal(logits(model), logits(base))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == required


def test_outputs_have_the_adapted_output_weight() -> None:
    model = adapted("llama", lora_of("llama", "dora head"))
    disturb(model)
    outputs = outputs_of(model, IDS, IDS).ready()
    expected = logits(model)[:, :-1].flatten(0, 1)
    torch.testing.assert_close(outputs.logits(slice(0, len(expected))), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "tied"])
@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "input_layernorm"]])
def test_modules_trained_in_full_in_a_bf16_base_are_fp32(name: str, names: list[str]) -> None:
    lora = LoRA(r=2, modules_to_save=names)
    model, base = adapted(name, lora, torch.bfloat16), plain(name, torch.bfloat16)
    assert model.get_input_embeddings()(IDS).dtype == torch.bfloat16
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    torch.testing.assert_close(logits(model).float(), logits(base).float(), rtol=0.05, atol=0.05)
    forward_with_objective(model.train(), IDS, HeadRequest(IDS, NLL()))[1].backward()
    assert all(p.grad is not None for p in trained(model).values())


def fit(rows: Path, lora: LoRA, source: Any = None, ckpt_path: Path | None = None, **options: Any) -> ProbSFTModule:
    module = ProbSFTModule(
        source or tiny.source(),
        options.pop("objective", NLL()),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        schedule=Schedule("constant", warmup=0),
        lora=lora,
    )
    tiny.trainer(**options).fit(module, datamodule=tiny.data(rows), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("kind", [slow("dora"), "dora head", "whole"])
def test_a_run_resumes_bit_for_bit_from_a_checkpoint_of_adapters(tmp_path: Path, kind: str) -> None:
    rows, lora = tiny.write_rows(tmp_path / "rows.jsonl"), lora_of("llama", kind)
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=1, keep_last=9))
    whole = fit(rows, lora, callbacks=[saved], enable_checkpointing=True)
    middle = tmp_path / "step-00000001.ckpt"
    held = torch.load(middle, weights_only=True)["state_dict"]
    names = {name.removeprefix("model.") for name in held if name.startswith("model.")}
    assert names == trained(whole.model).keys()
    resumed = fit(rows, lora, ckpt_path=middle)
    assert whole.trainer.global_step == resumed.trainer.global_step == 3
    for name, value in tiny.weights(resumed).items():
        assert torch.equal(value, tiny.weights(whole)[name]), name
    base = {name: value for name, value in whole.model.named_parameters() if not value.requires_grad}
    start = adapted_like(lora)
    assert all(torch.equal(value, start.get_parameter(name)) for name, value in base.items())
    with pytest.raises(UserError, match=r"--resume: expected the base that the checkpoint's adapters were trained"):
        fit(rows, lora, source=tiny.source(seed=5), ckpt_path=middle)


def adapted_like(lora: LoRA) -> Any:
    model = tiny.model()
    inject_adapters(model, lora)
    return model


def test_the_reference_is_a_copy_if_modules_are_trained_in_full(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    seen: list[torch.Tensor] = []

    class KeepsReference(ProbSFTModule):
        def on_train_end(self) -> None:
            assert self.frozen_reference.loaded is not None
            assert self.frozen_reference.loaded.model is not self.model
            seen.append(logits(self.frozen_reference.loaded.model))

    module = KeepsReference(tiny.source(), ASFT(), tiny.adamw, lora=lora_of("llama", "whole"))
    tiny.trainer(max_steps=2).fit(module, datamodule=tiny.data(rows))
    assert torch.equal(seen[0], logits(tiny.model().bfloat16()))


RUN = ["--model.lora", "LoRA", "--model.lora.r", "4", "--model.lora.dora", "true"]


def run_config(folder: Path) -> str:
    source = {"class_path": "PretrainedCausalLM", "init_args": {"model_name_or_path": str(folder / "base")}}
    base_folder("llama", folder)
    return str(config(folder, model__model=source))


@pytest.mark.slow
def test_a_run_exports_adapters_and_validates_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = run_config(tmp_path)
    cli = main(["fit", "--config", path, *RUN, "--model.lora.export", "adapter"])
    expected = logits(cli.model.model)
    assert sorted(p.name for p in Path("runs/tiny/hf").glob("adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "library_name: peft" in Path("runs/tiny/hf/README.md").read_text()
    alone = peft.AutoPeftModelForCausalLM.from_pretrained("runs/tiny/hf")
    torch.testing.assert_close(logits(alone), expected, rtol=1e-5, atol=1e-5)
    validated = main(["validate", "--config", path]).trainer.callback_metrics["val/nll"]
    assert float(validated) == pytest.approx(float(cli.trainer.callback_metrics["val/nll"]), rel=1e-5)

    checkpoint = "runs/tiny/checkpoints/last.ckpt"
    main(["export", checkpoint, "adapters"])
    ours, theirs = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("adapters", "runs/tiny/hf"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
    main(["export", checkpoint, "merged", "--merged"])
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained("merged")), expected, rtol=1e-5, atol=1e-5)
    plain, adapted_too = (
        main(["capability", "--config", path, *flags]).result
        for flags in (["--weights", "merged"], ["--weights", "runs/tiny/hf"])
    )
    assert adapted_too["nll"] == pytest.approx(plain["nll"], rel=1e-5)
    assert main(["capability", "--config", path]).result["nll"] != pytest.approx(plain["nll"], rel=1e-4)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match="--base: expected the base of the checkpoint's adapters, which could not be loaded"
    ):
        main(["export", checkpoint, "again", "--merged"])
    main(["export", checkpoint, "again", "--merged", "--base", "moved"])
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained("again")), logits(AutoModelForCausalLM.from_pretrained("merged"))
    )
    tiny.model(seed=9).save_pretrained("other")
    with pytest.raises(UserError, match="--base: expected the base that the adapters were trained with"):
        main(["export", checkpoint, "other-out", "--merged", "--base", "other"])


def folder_of(tmp_path: Path, kind: str = "dora", **fields: Any) -> Path:
    base_folder("llama", tmp_path)
    lora = lora_of("llama", kind, export="adapter")
    out = exported(adapted("llama", lora), lora, tmp_path)
    if fields:
        path = out / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 8}, "model.lora.r: expected 4, as in the adapters of FOLDER, got 8"),
        ({"alpha": 9.0}, "model.lora.alpha: expected 3.0, as in the adapters of FOLDER, got 9.0"),
        ({"dora": False}, "model.lora.dora: expected True, as in the adapters of FOLDER, got False"),
        ({"rslora": True}, "model.lora.rslora: expected False, as in the adapters of FOLDER, got True"),
        (
            {"target_modules": ["q_proj"]},
            "model.lora.target_modules: expected the modules of the adapters in FOLDER (down_proj, gate_proj, k_proj, "
            "o_proj, q_proj, up_proj, v_proj), got ['q_proj'] (q_proj)",
        ),
        (
            {"modules_to_save": ["embed_tokens"]},
            "model.lora.modules_to_save: expected the modules of the adapters in FOLDER (none), got ['embed_tokens'] "
            "(embed_tokens)",
        ),
    ],
)
def test_adapters_with_other_options_are_rejected(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    out = folder_of(tmp_path)
    with pytest.raises(UserError) as caught:
        adapted("llama", lora_of("llama", "dora", **{"start": str(out), **options}))
    assert str(caught.value) == message.replace("FOLDER", str(out))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "expected adapters of peft's type LORA, 'FOLDER' holds IA3"),
        ({"bias": "all"}, "expected adapters without bias, 'FOLDER' has 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "expected adapters without rank_pattern, 'FOLDER' has {'q_proj': 2}"),
        (
            {"init_lora_weights": "pissa"},
            "expected adapters of an unchanged base, 'FOLDER' has init_lora_weights pissa",
        ),
    ],
)
def test_unsupported_kinds_of_adapters_are_rejected(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    out = folder_of(tmp_path, **fields)
    with pytest.raises(UserError) as caught:
        lora_of("llama", "dora", start=str(out))
    assert str(caught.value) == f"model.lora.start: {message.replace('FOLDER', str(out))}"


def test_a_folder_without_adapters_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.start: expected a folder of adapters with adapter_config\.json"):
        LoRA(start=str(tmp_path))
    out = folder_of(tmp_path)
    (out / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.lora\.start: expected adapters in .*adapter_model\.safetensors"):
        adapted("llama", lora_of("llama", "dora", start=str(out)))


def test_adapters_of_another_model_are_rejected(tmp_path: Path) -> None:
    out = folder_of(tmp_path)
    values = load_file(out / "adapter_model.safetensors")
    name = next(name for name in values if name.endswith("up_proj.lora_A.weight"))
    save_file({**values, name: torch.zeros(4, 99)}, out / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"expected adapters of this model, but .* is \(4, 99\) instead of \(4, 16\)"):
        adapted("llama", lora_of("llama", "dora", start=str(out)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "tied",
            {"target_modules": ["lm_head"]},
            "model.lora.target_modules: expected no lm_head, which is tied to the embeddings and would be untied by "
            "adapters; model.lora.modules_to_save trains both in full; got ['lm_head']",
        ),
        (
            "llama",
            {"target_modules": ["lm_head"], "dropout": 0.1},
            "model.lora.dropout: expected 0 with adapters of the output layer (lm_head), because the objective is "
            "computed with its effective weight, got 0.1",
        ),
        (
            "llama",
            {"modules_to_save": ["embeddings"]},
            "model.lora.modules_to_save: expected names of modules with weights, such as embed_tokens, got "
            "'embeddings'",
        ),
        (
            "llama",
            {"modules_to_save": ["act_fn"]},
            "model.lora.modules_to_save: expected names of modules with weights, such as embed_tokens, got 'act_fn'",
        ),
        (
            "llama",
            {"modules_to_save": ["q_proj"], "target_modules": ["q_proj"]},
            "model.lora.modules_to_save: expected modules that are not in model.lora.target_modules, got 'q_proj' "
            "in both",
        ),
        ("llama", {"export": "both"}, "model.lora.export: expected merged or adapter, got 'both'"),
    ],
)
def test_modules_that_cannot_be_adapted_are_rejected(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        adapted(name, LoRA(**options))
    assert str(caught.value) == message


def test_adapters_cannot_be_exported_alone_if_their_base_is_adapters_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        ProbSFTModule(str(folder_of(tmp_path)), lora=LoRA(export="adapter"))
    assert str(caught.value) == (
        "model.lora.export: expected merged, because the base is a folder of adapters itself, got adapter; to continue "
        "training those adapters, name their base as the model and their folder as model.lora.start"
    )


def test_adapters_cannot_be_exported_alone_if_their_base_has_random_weights() -> None:
    with pytest.raises(UserError) as caught:
        ProbSFTModule(tiny.source(), lora=LoRA(export="adapter"))
    assert str(caught.value) == (
        "model.lora.export: expected merged, because the base has random weights and no name to load it by, got adapter"
    )


def test_a_checkpoint_of_adapters_is_validated_only_with_its_own_base(tmp_path: Path) -> None:
    rows, lora = tiny.write_rows(tmp_path / "rows.jsonl"), lora_of("llama", "plain")
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=3))
    whole = fit(rows, lora, callbacks=[saved], enable_checkpointing=True)
    data = tiny.data(rows, validation_fraction=0.3)

    def nll(source: Any, lora: LoRA | None, **options: Any) -> float:
        module = ProbSFTModule(source, lora=lora)
        return float(tiny.trainer().validate(module, datamodule=data, verbose=False, **options)[0]["val/nll"])

    export_model(whole.model, ByteTokenizer().load(list), tmp_path / "merged", lora=lora)
    path = str(tmp_path / "last.ckpt")
    assert nll(tiny.source(), lora, ckpt_path=path) == pytest.approx(nll(str(tmp_path / "merged"), None), rel=1e-5)
    with pytest.raises(UserError, match="expected the base that the checkpoint's adapters were trained with"):
        nll(tiny.source(seed=5), lora, ckpt_path=path)
    with pytest.raises(UserError, match="^--ckpt_path: .*got no model.lora"):
        nll(tiny.source(), None, ckpt_path=path)


@pytest.mark.slow
@pytest.mark.parametrize("grown", [False, True])
def test_adapters_that_nothing_could_load_are_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path, flags = run_config(tmp_path), ["--model.lora", "LoRA", "--model.lora.r", "2"]
    if grown:
        flags += ["--model.lora.modules_to_save", "[embed_tokens,lm_head]", "--data.add_tokens", "['<think>']"]
        message = "because the base of the adapters has no rows for new tokens, got adapter"
    else:
        flags += ["--model.model.init_args.model_name_or_path", str(folder_of(tmp_path))]
        message = "because the base is a folder of adapters itself, got adapter"
    main(["fit", "--config", path, "--trainer.max_steps", "1", *flags])
    with pytest.raises(UserError, match=f"^--adapter: expected merged.*{message}"):
        main(["export", "runs/tiny/checkpoints/last.ckpt", "out", "--adapter"])
    assert not Path("out").exists()
    main(["export", "runs/tiny/checkpoints/last.ckpt", "out", "--merged"])


def test_adapters_without_a_tokenizer_use_that_of_their_base(tmp_path: Path) -> None:
    out = folder_of(tmp_path)
    for file in [*out.glob("tokenizer*"), *out.glob("*.jinja")]:
        file.unlink()
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ 'of the base' }}")
    assert read_tokenizer(str(out)).chat_template == "{{ 'of the base' }}"
    (out / "tokenizer.json").write_text("damaged")
    with pytest.raises(UserError, match="name_or_path: expected a folder or a hub id that holds a tokenizer"):
        read_tokenizer(str(out))


@pytest.mark.slow
def test_adapters_with_another_base_give_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    out, path = folder_of(tmp_path), run_config(tmp_path)
    (tmp_path / "link").symlink_to("base")
    same, other = (["--model.model.init_args.model_name_or_path", name] for name in ("link", "other"))
    shutil.copytree("base", "other")
    warned = []
    for flags in (same, other):
        recwarn.clear()
        main(["validate", "--config", path, "--weights", str(out), *flags])
        warned.append([str(w.message) for w in recwarn if str(w.message).startswith("--weights")])
    assert warned == [[], [f"--weights: the adapters in {out} belong to {tmp_path / 'base'}, but model.model is other"]]
