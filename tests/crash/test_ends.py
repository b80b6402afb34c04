"""Edge cases of ending and resuming: within a window, without validation, at the last step, in a shared folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.parallel.stopping import STOPPED
from lit_probsft.storage.checkpoint_files import damage, steps
from tests.crash.scene import Scene, difference, documents, exported, metrics
from tests.crash.server import Server
from tests.crash.test_damage import flip

pytestmark = pytest.mark.slow

CALLBACKS = "tests.crash.callbacks"
DIARY = {"class_path": f"{CALLBACKS}.Diary"}
NO_VALIDATION = {"data__validation": None}


def signalled(**options: Any) -> dict[str, Any]:
    return {"trainer__callbacks": [DIARY, {"class_path": f"{CALLBACKS}.Signals", "init_args": options}]}


def saved(scene: Scene, name: str = "run") -> list[int]:
    return [step for step, _ in steps(scene.checkpoints(name))]


def status(scene: Scene, name: str = "run") -> str:
    return str(json.loads((scene.run(name) / "run.json").read_text())["status"])


@pytest.mark.parametrize("changes", [NO_VALIDATION, {"trainer__limit_val_batches": 0}], ids=["no rows", "no batches"])
@pytest.mark.parametrize(("every", "expected"), [(None, [6, 9]), (3, [6, 9]), (2, [6, 8, 9])])
def test_checkpoints_are_written_without_validation(
    server: Server, tmp_path: Path, changes: dict[str, Any], every: int | None, expected: list[int]
) -> None:
    """Epochs end at steps 3, 6 and 9. Two checkpoints are kept; without validation none is the best."""
    scene = Scene(server, tmp_path, **changes, trainer__max_epochs=3, checkpoints__save_every=every)
    scene.fit("run")
    assert saved(scene) == expected[-2:]


def test_a_signal_stops_a_run_with_one_step_per_epoch(server: Server, tmp_path: Path) -> None:
    changes = {**NO_VALIDATION, **signalled(step=3), "data__batch_size": 24, "trainer__accumulate_grad_batches": 1}
    scene = Scene(server, tmp_path, **changes, trainer__max_epochs=30)
    scene.fit("run", status=STOPPED)
    assert saved(scene)[-1] == 3


def test_a_stop_within_a_window_takes_effect_at_its_end(server: Server, tmp_path: Path) -> None:
    """`trainer.max_time` may stop a run there too."""
    callbacks = [DIARY, {"class_path": f"{CALLBACKS}.StopsAtMicroBatch", "init_args": {"micro_batch": 2}}]
    scene = Scene(server, tmp_path, trainer__max_epochs=2, trainer__callbacks=callbacks)
    scene.fit("run")
    assert saved(scene) == [2]  # the third micro-batch is in the second window of two
    scene = Scene(server, tmp_path, trainer__max_epochs=2)
    scene.fit("whole")
    scene.fit("run", "--resume")
    assert documents(scene.diary("run")) == documents(scene.diary("whole"))
    assert not difference(exported(scene.run("run") / "hf"), exported(scene.run("whole") / "hf"))


def test_an_interval_in_time_is_refused_because_it_could_split_a_window(server: Server, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, trainer__val_check_interval="00:00:00:01")
    run = scene.fit("run", status=2)
    assert run.output.count("lit_probsft: error: trainer.val_check_interval: expected a number of micro-batches") == 1


def test_a_signal_during_validation_waits_for_its_metrics(server: Server, tmp_path: Path) -> None:
    whole = Scene(server, tmp_path, trainer__max_epochs=2)
    whole.fit("whole")
    scene = Scene(server, tmp_path, **signalled(step=6, validating=True), trainer__max_epochs=2)
    scene.fit("run", status=STOPPED)
    assert saved(scene)[-1] == 6
    whole.fit("run", "--resume")
    whole.assert_end("run", "whole")
    record = json.loads((scene.run("run") / "run.json").read_text())
    expected = json.loads((scene.run("whole") / "run.json").read_text())
    for name in ("val/nll", "val/mean_p"):
        assert record["metrics"][name] == expected["metrics"][name]


@pytest.mark.parametrize("export", ["final", "best", "every"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_run_that_ends_before_its_export_exports_on_resume(
    server: Server, tmp_path: Path, number: str, export: str
) -> None:
    """The run ends at the last step, so nothing is left to train."""
    whole = Scene(server, tmp_path, trainer__max_epochs=2, checkpoints__export=export)
    whole.fit("whole")
    scene = Scene(server, tmp_path, **signalled(step=6, validating=True, number=number), trainer__max_epochs=2)
    if number == "SIGKILL":  # after the last checkpoint, before the export
        scene.fit(
            "run",
            f"--checkpoints.export={export}",
            status=-9,
            die_at=("before mkdir .hf.partial", 1 + (export == "best")),
        )
    else:
        scene.fit("run", f"--checkpoints.export={export}", status=STOPPED)
    whole.fit("run", "--resume")
    assert status(scene) == "completed"
    whole.assert_end("run", "whole")


def test_best_ckpt_always_links_to_an_intact_checkpoint(server: Server, tmp_path: Path) -> None:
    """Sharded checkpoints, a slow disk, keep_last 1: the old best stays until the new one is complete."""
    callbacks = [DIARY, {"class_path": f"{CALLBACKS}.SlowDisk", "init_args": {"seconds": 0.3}}]
    strategy = {"trainer__strategy": "fsdp2", "trainer__devices": 1, "checkpoints__asynchronous": True}
    scene = Scene(
        server,
        tmp_path,
        **strategy,
        pause=0.05,
        checkpoints__keep_last=1,
        trainer__max_epochs=4,
        trainer__callbacks=callbacks,
    )
    run = scene.start("run")
    best, seen = scene.checkpoints("run") / "best.ckpt", set()
    while run.poll() is None:
        if best.is_symlink():
            target = os.readlink(best)
            seen.add(target)
            assert damage(best.parent / target) is None or os.readlink(best) != target, target
        time.sleep(0.01)
    assert run.status == 0, run.output[-3000:]
    assert len(seen) > 1


def test_on_resume_the_configured_learning_rate_replaces_that_of_the_checkpoint(server: Server, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, trainer__max_epochs=2)
    scene.fit("run")
    run = scene.fit("run", "--resume", "--trainer.max_epochs=4", "--model.optimizer.lr=0.003")
    assert "  model.optimizer.lr: 0.01 -> 0.003\n" in run.output
    rates = [float(row["lr"]) for row in metrics(scene.run("run") / "metrics.csv") if "lr" in row]
    scene.fit("whole", "--trainer.max_epochs=4", "--model.optimizer.lr=0.003")
    expected = [float(row["lr"]) for row in metrics(scene.run("whole") / "metrics.csv") if "lr" in row]
    assert rates[6:] == expected[6:]
    assert rates[:6] != expected[:6]


def test_a_damaged_checkpoint_given_by_path_is_refused(server: Server, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, trainer__max_epochs=1)
    scene.fit("run")
    last = scene.checkpoints("run") / "last.ckpt"
    flip(last, 0.5, 1)
    for command in ("fit", "validate"):
        run = scene.server.run(
            command, "--config", scene.config, "--name", "other", "--ckpt_path", last, cwd=scene.folder
        )
        assert run.status == 2, run.output[-2000:]
        assert "--ckpt_path: expected an intact checkpoint" in run.output
        assert "Traceback" not in run.output


def test_a_sharded_checkpoint_is_refused_where_a_single_file_is_expected(server: Server, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, trainer__max_epochs=1, trainer__strategy="fsdp2", trainer__devices=1)
    scene.fit("run")
    flags = [
        "--ckpt_path",
        scene.checkpoints("run") / "last.ckpt",
        "--trainer.strategy=auto",
        "--trainer.callbacks=null",
    ]
    run = scene.server.run("validate", "--config", scene.config, *flags, cwd=scene.folder)
    assert run.status == 2, run.output[-2000:]
    assert "--ckpt_path: expected a single file" in run.output


@pytest.mark.parametrize("cut", [1, 40, 150])
def test_a_run_resumes_with_a_truncated_metrics_csv(server: Server, tmp_path: Path, cut: int) -> None:
    whole = Scene(server, tmp_path, trainer__max_epochs=4)
    whole.fit("whole")
    scene = Scene(server, tmp_path, **signalled(step=8), trainer__max_epochs=4)
    scene.fit("run", status=STOPPED)
    path = scene.run("run") / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    whole.fit("run", "--resume")
    rows = [{**row, "lost": str(cut)} for row in metrics(path)]
    expected = [{**row, "lost": str(cut)} for row in metrics(scene.run("whole") / "metrics.csv")]
    missing = [row for row in expected if row not in rows]
    assert all(row in expected for row in rows)
    assert len(missing) <= 3, missing  # only the last steps before the stop


def test_two_runs_cannot_write_to_the_same_folder(server: Server, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, pause=0.05, trainer__max_epochs=4)
    scene.fit("whole")
    first = scene.start("run")
    scene.wait_until_trained(first, "run", 2)
    second = scene.server.run(*scene.command("run", "--overwrite"), cwd=scene.folder)
    assert second.status == 2, second.output[-2000:]
    assert "--name: another process is training in" in second.output
    assert first.wait() == 0, first.output[-2000:]
    scene.assert_end("run", "whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.strategy=ddp_spawn"], "trainer.strategy: ddp_spawn is not supported, use ddp"),
        (["--trainer.callbacks=ModelCheckpoint"], "trainer.callbacks: expected no ModelCheckpoint"),
        (
            ["--trainer.enable_checkpointing=false", "--checkpoints.export=best"],
            "checkpoints.export: expected final or none with trainer.enable_checkpointing: false, got best",
        ),
        (["--ckpt_path=hpc"], "--ckpt_path: no such checkpoint: hpc"),
        (
            ["--trainer.max_epochs=null", "--trainer.max_steps=4", "--trainer.limit_train_batches=3"],
            "trainer.limit_train_batches: expected a multiple of accumulate_grad_batches",
        ),
    ],
)
def test_unsupported_settings_are_refused_in_one_error(
    server: Server, tmp_path: Path, flags: list[str], message: str
) -> None:
    run = Scene(server, tmp_path).fit("run", *flags, status=2)
    assert run.output.count(f"lit_probsft: error: {message}") == 1, run.output[-2000:]
    assert "Traceback" not in run.output
