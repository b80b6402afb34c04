"""`evaluate MODEL --tasks gsm8k --out results/X.json`: grades a model's answers to benchmarks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_probsft.cli.arguments import CommandParser, path_argument, path_or_name
from lit_probsft.cli.model_flags import add_model_flags, flag_of, tokenizer_options
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from lit_probsft.evaluation.subject import Subject


def run(args: Sequence[str]) -> dict[str, Any]:
    """Evaluate the model, print a table and return the content of the results file.

    Raises:
        UserError: for a wrong flag, a model or rows that cannot be loaded, or files of another evaluation.
    """
    parser = CommandParser(
        prog="python -m lit_probsft evaluate",
        usage="python -m lit_probsft evaluate MODEL --tasks TASKS --out FILE [FLAGS]",
        description="Grade a model's answers to benchmarks. The same command continues an evaluation that was stopped.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--tasks", required=True, help="names, such as math500,gsm8k, a file as in Math:mine.jsonl, or tasks.yaml"
    )
    parser.add_argument(
        "--out", required=True, type=path_argument, metavar="FILE", help="results file, such as results/X.json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in FILE")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N questions of each task (default: all)")
    parser.add_argument(
        "--data-dir", metavar="FOLDER", type=path_or_name, help="folder with the rows (default: the hub)"
    )
    parser.add_argument("--paper", action="store_true", help="prompts, sampling and averages of the paper")
    parser.add_argument("--n", metavar="N", type=int, default=1, help="answers to each question (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy decoding (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus to sample from (default: 1)")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, help="maximum length of an answer (default: that of the task)"
    )
    parser.add_argument("--greedy", action="store_true", help="one more answer to each question, without sampling")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for sampling (default: 0)")
    parser.add_argument("--likelihood", action="store_true", help="also measure p of the right answers and the choices")
    parser.add_argument(
        "--retention",
        metavar="TASKS",
        help="also run tasks of lm-eval, names or YAML files, such as ifeval,mmlu, on MODEL and its base",
    )
    parser.add_argument("--retention-chat", action="store_true", help="run these tasks with the chat template")
    parser.add_argument(
        "--base", metavar="MODEL", type=path_or_name, help="the model before training, if MODEL does not name it"
    )
    parser.add_argument(
        "--generation",
        choices=("plain", "model"),
        default="plain",
        help="`model` keeps the penalties of its generation_config.json (default: plain)",
    )
    places = parser.add_argument_group("several devices, or a server")
    places.add_argument("--devices", type=int, default=1, metavar="N", help="one process on each of N devices")
    places.add_argument("--device-map", choices=("auto",), help="spread one model over all GPUs and the CPU")
    places.add_argument("--server", metavar="URL", help="ask a server with the OpenAI protocol, such as vLLM")
    places.add_argument("--server-model", metavar="NAME", help="name on the server (default: its only model)")
    places.add_argument(
        "--server-template", action="store_true", help="let the server render the prompts; MODEL is only a name then"
    )
    places.add_argument("--api-key", metavar="KEY", help="for the server")
    flags = parser.parse_args(args)
    known = tokenizer_options(flags)
    from lit_probsft.evaluation.evaluation import Evaluation
    from lit_probsft.evaluation.models import device_named, model_place
    from lit_probsft.evaluation.paper import apply_protocols
    from lit_probsft.evaluation.session import add_retention, check_retention, evaluate
    from lit_probsft.evaluation.settings import Settings
    from lit_probsft.evaluation.store import Store
    from lit_probsft.evaluation.tasks.registry import tasks_named

    _check_flags(flags, parser)
    names = ("n", "temperature", "top_p", "max_new_tokens", "seed", "system", "limit", "greedy")
    given = {name: getattr(flags, name) for name in names}
    try:
        settings: Any = Settings(**given, template_options=known["template_options"] or {})
        tasks = tasks_named(flags.tasks, flags.data_dir)
        if flags.paper:
            tasks, settings = apply_protocols(tasks, settings)
    except UserError as error:
        raise (flag_of(error) if error.argument in vars(flags) else error) from error
    base = _base(flags)
    retention = flags.retention.split(",") if flags.retention else []
    also = {"likelihood": flags.likelihood, "paper": flags.paper}
    here = contextlib.nullcontext(None) if flags.server_template else model_place(flags.model)
    with Store(flags.out, flags.overwrite) as store, here as place:
        options = {"limit": flags.limit, "chat_template": flags.retention_chat}
        check_retention(store, retention, {"base": base, **options})
        subject = _subject(flags, place, known)
        with contextlib.closing(subject.backend):
            evaluation = Evaluation(tasks, settings, subject.tokenizer, subject.context_length)
            results = evaluate(flags.model, subject, evaluation, store, base=base, **also)
        del subject  # lm-eval loads the model again
        if retention and place is not None and base is not None:
            device = str(device_named(flags.device))
            add_retention(results, store, place, base, retention, device=device, **options)
    _print_table(results["tasks"])
    print(f"{store.out}: these numbers; {store.folder}: the answers")
    return results


def _check_flags(flags: Namespace, parser: CommandParser) -> None:
    set_by_paper = ("n", "temperature", "top_p", "max_new_tokens", "system")
    here, of_server = ("device_map", "likelihood"), ("server_model", "server_template", "api_key")
    for applies, names, problem in (
        (flags.paper, set_by_paper, "expected none with --paper, which sets it"),
        (flags.server is None, of_server, "expected --server with it, got none"),
        (flags.retention is None, ("retention_chat",), "expected --retention with it, got none"),
        (flags.server is not None, ("devices", *here), "expected none with --server, since it needs the model here"),
        (flags.server_template, ("retention",), "expected none with --server-template, since it needs the weights"),
        (flags.devices > 1, here, "expected none with --devices, since it needs the model in this process"),
    ):
        for name in names if applies else ():
            if getattr(flags, name) != parser.get_default(name):
                raise flag_of(UserError(name, problem))


def _base(flags: Namespace) -> str | None:
    from lit_probsft.evaluation.models import base_of

    base: str | None = flags.base or (None if flags.server_template else base_of(flags.model, flags.revision))
    if base is None and flags.retention:
        raise UserError("--base", f"expected the model before training, which {flags.model!r} does not name; got none")
    return base


def _subject(flags: Namespace, place: str | None, known: Any) -> Subject:
    from lit_probsft.evaluation.models import device_named
    from lit_probsft.evaluation.subject import devices_of, local_subject, server_subject

    if flags.server is not None:
        asking = {"model": flags.server_model, "api_key": flags.api_key}
        return server_subject(flags.server, place, known, top_p=flags.top_p, **asking)
    assert place is not None
    devices = devices_of(device_named(flags.device), flags.devices)
    answering = {"top_p": flags.top_p, "keep_generation_config": flags.generation == "model"}
    return local_subject(place, devices, flags.dtype, known, spread=flags.device_map is not None, **answering)


def _print_table(tasks: Mapping[str, Any]) -> None:
    rows = [["task", "questions", "accuracy", "95% interval", "cut off", "no answer", "tokens"]]
    for name, numbers in tasks.items():
        accuracy, length = numbers["accuracy"], numbers["tokens"]["mean"]
        interval = f"{100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f} %"
        shares = [f"{100 * numbers[share]:.1f} %" for share in ("cut_off", "no_answer")]
        mean = f"{100 * accuracy['mean']:.1f} %"
        tokens = "" if length is None else f"{length:.0f}"
        rows.append([name, str(numbers["questions"]), mean, interval, *shares, tokens])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if too_long := sum(numbers["prompt_too_long"] for numbers in tasks.values()):
        print(f"prompts longer than the model's context, which count as wrong: {too_long}")
