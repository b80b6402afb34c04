"""Tokens per second of answers: one-by-one `generate` and ours, and what it saves to share a prompt's prefill.

    python -m benchmarks.generation --model FOLDER
    python -m benchmarks.generation --model FOLDER --data test.jsonl --device cuda --shared 64

The first part answers the same questions greedily with transformers' `generate`, one after the other, and with
`LocalBackend`. The texts have to be equal. Where they are not, the result holds the gap between the two largest logits
at the first token that differs: a gap near rounding error is a tie.

The second part draws 16 answers of a fixed length to one prompt, and one answer to each of 16 prompts of the same
length, for a short prompt and a long one. With `--shared N`, it also draws 16 answers to each of N prompts.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import harness
from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.evaluation.generation.local import LocalBackend
from lit_probsft.evaluation.generation.requests import Draw, Request

DRAWS = 16
THINGS = ("apples", "pens", "coins", "shells", "cards", "stamps", "books")


def made_up_questions(count: int) -> list[str]:
    """Sums in words."""
    rng = random.Random(0)
    questions = []
    for _ in range(count):
        things = rng.sample(THINGS, rng.randrange(2, 6))
        held = ", ".join(f"{rng.randrange(2, 90)} {thing}" for thing in things)
        questions.append(
            f"Mia has {held}. She gives away {rng.randrange(1, 3)} of each kind, and her brother gives her as many "
            f"{things[0]} as she then has {things[1]}. How many things does she have now? Explain each step."
        )
    return questions


def prompts(tokenizer: Any, options: argparse.Namespace) -> list[list[int]]:
    """The questions as a chat asks them."""
    if options.data:
        rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
        questions = [row["question"] for row in rows[: options.prompts]]
    else:
        questions = made_up_questions(options.prompts)
    return [tokenize_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]


def requests(prompts: Sequence[Sequence[int]], draws: Sequence[Draw], max_new_tokens: int) -> list[Request]:
    """One for each prompt."""
    return [Request(index, [], prompt, draws, max_new_tokens) for index, prompt in enumerate(prompts)]


class Undecoded:
    """A tokenizer whose texts are the ids."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The ids as JSON."""
        return json.dumps(list(ids))


def one_by_one(
    model: Any, prompts: Sequence[Sequence[int]], stops: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """The greedy answers of transformers' `generate`, one prompt at a time."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        produced = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops),
            pad_token_id=stops[0],
        )
        found.append(produced[0, len(prompt) :].tolist())
    return found


@torch.no_grad()
def gap(model: Any, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> float:
    """The difference of the two largest logits where two answers part."""
    same = next(place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    ids = torch.tensor([[*prompt, *one[:same]]], device=model.device)
    first, second = model(input_ids=ids).logits[0, -1].float().topk(2).values.tolist()
    return float(first - second)


def greedy(model: Any, tokenizer: Any, asked: Sequence[Sequence[int]], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the first part."""
    backend = LocalBackend(model, tokenizer)
    backend.tokenizer = Undecoded()
    wanted = requests(asked, [Draw(0, 0, 0.0)], options.max_new_tokens)
    answers: dict[str, list[list[int]]] = {}

    def ours() -> Mapping[str, float]:
        found = {answer.index: json.loads(answer.text) for answer in backend.answer(wanted)}
        answers["ours"] = [found[index] for index in range(len(asked))]
        return {"tokens": sum(map(len, answers["ours"]))}

    def theirs() -> Mapping[str, float]:
        answers["generate"] = one_by_one(model, asked, backend.stops, options.max_new_tokens)
        return {"tokens": sum(map(len, answers["generate"]))}

    variants = [harness.Variant("generate, one by one", theirs), harness.Variant("ours", ours)]
    timings = measure(variants, options)
    pairs = list(zip(asked, answers["generate"], answers["ours"], strict=True))
    gaps = [gap(model, prompt, one, other) for prompt, one, other in pairs if one != other]
    return {**timings, "answers": len(pairs), "different": len(gaps), "gaps": harness.rounded(gaps)}


def sharing(model: Any, tokenizer: Any, asked: Sequence[Sequence[int]], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the second part."""
    backend = LocalBackend(model, tokenizer)
    backend.stops = []  # answers of a fixed length
    stream = [id for prompt in asked for id in prompt]
    found = {}
    for length in options.lengths:
        equal = [[*(stream * (length * DRAWS // len(stream) + 2))[n * 7 :][:length]] for n in range(DRAWS)]
        one = requests(equal[:1], [Draw(n, n, 1.0) for n in range(DRAWS)], options.sampled_tokens)
        many = requests(equal, [Draw(0, 0, 1.0)], options.sampled_tokens)

        variants = [
            harness.Variant(f"{DRAWS} prompts", partial(tokens, backend, many)),
            harness.Variant(f"{DRAWS} answers to a prompt", partial(tokens, backend, one)),
        ]
        found[f"{length} tokens"] = measure(variants, options)
    return found


def tokens(backend: LocalBackend, wanted: Sequence[Request]) -> Mapping[str, float]:
    """Answer, and count the tokens."""
    return {"tokens": sum(answer.tokens for answer in backend.answer(wanted))}


def measure(variants: Sequence[harness.Variant], options: argparse.Namespace) -> dict[str, Any]:
    """Time the variants in turn. Ratios are to the first."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    timings = harness.time_variants(variants, rounds=options.rounds, synchronize=wait, report=harness.say)
    for timing in timings.values():
        timing.values["tokens_per_second"] = timing.values["tokens"] / harness.spread(timing.seconds)["median"]
    reference = variants[0].name
    return {
        "variants": {name: timing.summary() for name, timing in timings.items()},
        "time_ratio": harness.ratios({name: timing.seconds for name, timing in timings.items()}, reference),
        "cpu_time_ratio": harness.ratios({name: timing.cpu_seconds for name, timing in timings.items()}, reference),
    }


def run(options: argparse.Namespace) -> Path:
    """Measure, write and print the result."""
    if options.device == "cpu":
        torch.set_num_threads(1)  # a ratio on a shared machine depends less on its load
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    asked = prompts(tokenizer, options)
    parts = {"greedy": greedy(model, tokenizer, asked, options)}
    parts |= {f"sampled, {name}": part for name, part in sharing(model, tokenizer, asked, options).items()}
    if options.shared:
        backend = LocalBackend(model, tokenizer)
        wanted = requests(asked[: options.shared], [Draw(n, n, 1.0) for n in range(DRAWS)], options.max_new_tokens)
        variant = harness.Variant("ours", partial(tokens, backend, wanted))
        parts[f"sampled, {len(wanted)} prompts x {DRAWS}"] = measure([variant], options)
    arguments = {key: value for key, value in vars(options).items() if value is not None}
    names = {key: Path(arguments[key]).name for key in ("model", "data") if key in arguments}
    path = harness.write_result(
        "generation",
        {**arguments, **names},
        options.device,
        Path(options.model).name.lower(),
        dtype=str(dtype).removeprefix("torch."),
        prompt_tokens=harness.spread(map(len, asked)),
        parts=parts,
    )
    rows = [
        {
            "": part,
            "variant": name,
            "tokens/s": facts["values"]["tokens_per_second"],
            "seconds": facts["seconds"]["median"],
            "time": content["time_ratio"][name],
            "CPU time": content["cpu_time_ratio"][name],
        }
        for part, content in parts.items()
        for name, facts in content["variants"].items()
    ]
    print(harness.table(rows))
    first = parts["greedy"]
    print(f"\n{first['different']} of {first['answers']} greedy answers differ; gaps of the logits: {first['gaps']}")
    print(path)
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=description)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or hub id with a chat template")
    parser.add_argument("--data", help="a jsonl file with a column `question`; made-up sums without it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompts", type=int, default=32, help="questions of the first part")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--sampled-tokens", type=int, default=64, help="length of an answer in the second part")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="prompt lengths of the second part")
    parser.add_argument("--shared", type=int, default=0, help="prompts that get 16 answers each; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
