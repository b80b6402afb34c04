"""`export CKPT OUT`: converts a checkpoint to a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence

from lit_probsft.cli.arguments import CommandParser, path_argument


def run(args: Sequence[str]) -> None:
    """Write the folder, then upload it with `--push-to-hub`.

    Raises:
        UserError: for a wrong flag, a damaged checkpoint, or a folder or repository that cannot be written.
    """
    parser = CommandParser(
        prog="python -m lit_probsft export",
        description="Convert a checkpoint to a Hugging Face folder. Needs only the checkpoint and, for adapters, their "
        "base model.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=path_argument,
        help="checkpoint of `fit`, such as runs/NAME/checkpoints/last.ckpt",
    )
    parser.add_argument("out", metavar="OUT", type=path_argument, help="Hugging Face folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload OUT to this hub repository, such as me/model")
    form = parser.add_mutually_exclusive_group()
    for name, content in (("merged", "a plain model"), ("adapter", "only the adapters, as a peft folder")):
        form.add_argument(
            f"--{name}",
            dest="form",
            action="store_const",
            const=name,
            help=f"write {content}, whatever model.lora.export says",
        )
    parser.add_argument("--base", metavar="MODEL", help="base model of the adapters, if it has moved")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the written weights (default: that of the base model)",
    )
    options = parser.parse_args(args)
    import torch
    import transformers

    from lit_probsft.run.checkpoint_export import export_checkpoint
    from lit_probsft.run.export import loader_of
    from lit_probsft.run.upload import HubOptions, ensure_repo, upload

    flag = "--push-to-hub"
    hub = ensure_repo(HubOptions(options.push_to_hub), flag) if options.push_to_hub else None
    transformers.utils.logging.disable_progress_bar()
    export_checkpoint(
        options.checkpoint,
        options.out,
        overwrite=options.overwrite,
        form=options.form,
        base=options.base,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
    )
    print(f"{options.out}: load it with {loader_of(options.out)}")
    if hub is not None:
        print(upload(hub, options.out, flag))
