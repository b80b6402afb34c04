"""Compares loss and gradients of the head with those of a model's own full logits, for the families of transformers.

    python -m benchmarks.architectures

Every model is built tiny from its configuration class, with random weights and two layers; the reference is the plain
loss over `model(input_ids).logits`. Nothing is timed. The tests run the same comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from lit_probsft.head.layer import HeadRequest
from lit_probsft.model import RandomCausalLM
from lit_probsft.model.forward import forward_with_objective, install_head
from lit_probsft.objectives import NLL, NegP, Objective

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ONE_KIND_OF_HEADS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {**SMALL, **_LATENT, **_EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1}

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**SMALL, "model_type": "llama"},
    "Mistral": {**SMALL, "model_type": "mistral", "sliding_window": 4},
    "Qwen2, Qwen2.5 (tied)": {**SMALL, "model_type": "qwen2", "tie_word_embeddings": True},
    "Qwen3": {**SMALL, "model_type": "qwen3", "head_dim": 8},
    "Gemma": {**SMALL, "model_type": "gemma", "head_dim": 8},
    "Gemma 2 (soft cap)": {
        **SMALL,
        "model_type": "gemma2",
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
        "sliding_window": 4,
    },
    "Gemma 3": {**SMALL, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 4},
    "Phi (bias)": {**_ONE_KIND_OF_HEADS, "model_type": "phi"},
    "Phi 3, Phi 4": {**SMALL, "model_type": "phi3"},
    "Granite (divides)": {**SMALL, "model_type": "granite", "logits_scaling": 4.0},
    "Cohere (multiplies)": {**SMALL, "model_type": "cohere", "logit_scale": 0.3},
    "Cohere 2": {**SMALL, "model_type": "cohere2", "logit_scale": 0.3, "sliding_window": 4},
    "OLMo": {**SMALL, "model_type": "olmo"},
    "OLMo 2": {**SMALL, "model_type": "olmo2"},
    "OLMo 3": {**SMALL, "model_type": "olmo3", "sliding_window": 4},
    "DeepSeek V2 (experts)": {**_DEEPSEEK, "model_type": "deepseek_v2", "topk_group": 1},
    "DeepSeek V3 (experts)": {**_DEEPSEEK, "model_type": "deepseek_v3", "topk_group": 1},
    "Mixtral (experts)": {**SMALL, "model_type": "mixtral", "num_local_experts": 4},
    "Qwen2 MoE": {
        **SMALL,
        **_EXPERTS,
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
    },
    "Qwen3 MoE": {**SMALL, **_EXPERTS, "model_type": "qwen3_moe", "num_experts": 4},
    "OLMoE": {**SMALL, "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
    "GPT-OSS (experts)": {
        **SMALL,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "head_dim": 8,
        "sliding_window": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "SmolLM3": {**SMALL, "model_type": "smollm3"},
    "GLM 4": {**SMALL, "model_type": "glm4", "head_dim": 8},
    "EXAONE 4": {**SMALL, "model_type": "exaone4"},
    "StableLM": {**SMALL, "model_type": "stablelm"},
    "Starcoder 2": {**SMALL, "model_type": "starcoder2"},
    "GPT-NeoX, Pythia": {**_ONE_KIND_OF_HEADS, "model_type": "gpt_neox"},
}
OBJECTIVES: dict[str, Objective] = {"NLL": NLL(), "NegP": NegP()}


def tokens() -> tuple[Tensor, Tensor]:
    """(3, 9) ids and labels; some labels are masked, and all in the last row."""
    ids = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6:] = labels[2] = -100
    return ids, labels


def errors(family: str, objective: Objective, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """The relative error of the loss, and the largest relative error (by norm) of a parameter's gradient.

    Args:
        family: a key of `FAMILIES`.
        objective: NLL or NegP.
        dtype: of the weights and the computation.
    """
    model = RandomCausalLM(FAMILIES[family], seed=1).load(None, dtype).eval()
    ids, labels = tokens()
    parameters = list(model.parameters())
    supervised = labels[:, 1:] != -100
    log_p = model(input_ids=ids).logits[:, :-1][supervised].log_softmax(-1)
    log_p = log_p.gather(-1, labels[:, 1:][supervised, None])
    expected = (1 - log_p.exp()).mean() if isinstance(objective, NegP) else -log_p.mean()
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    install_head(model)
    _, loss, _ = forward_with_objective(model, ids, HeadRequest(labels, objective))
    got = torch.autograd.grad(loss, parameters, allow_unused=True)
    # Some parameters (of experts that no token chose) have no gradient on either side.
    pairs = [(a, b) for a, b in zip(got, wanted, strict=True) if b is not None and a is not None and b.norm() > 0]
    assert len(pairs) == sum(b is not None and bool(b.norm() > 0) for b in wanted)
    gradient = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return float(((loss - expected) / expected).detach().abs()), gradient


def run(options: argparse.Namespace) -> Path:
    """Compare all families, write and print the result."""
    found: dict[str, Any] = {}
    for family in FAMILIES:
        measured = {name: errors(family, objective) for name, objective in OBJECTIVES.items()}
        found[family] = {
            "model_type": FAMILIES[family]["model_type"],
            **{name: {"loss": loss, "gradient": gradient} for name, (loss, gradient) in measured.items()},
        }
    arguments = {key: value for key, value in vars(options).items() if value is not None}
    path = harness.write_result("architectures", arguments, dtype="float32", families=found)
    rows = [
        {
            "model": family,
            **{f"{name} {what}": f"{facts[name][what]:.1e}" for name in OBJECTIVES for what in facts[name]},
        }
        for family, facts in found.items()
    ]
    print(harness.table(rows))
    print(f"\n{path}")
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=description)
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
