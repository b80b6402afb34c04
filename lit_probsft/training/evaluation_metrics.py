"""Metrics of the validation and test sets, and how they are logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from lit_probsft.errors import UserError
from lit_probsft.head.loss import HeadOutput
from lit_probsft.objectives import Objective
from lit_probsft.training.metrics import Calibration, TokenMeans, sources_of

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


def not_a_number(metric: str, step: int) -> UserError:
    """The error for a model whose probabilities are NaN.

    Args:
        metric: its name.
        step: optimizer steps so far; 0 before training.
    """
    if step:
        when, remedy = f"after optimizer step {step}", "lower model.optimizer.lr; earlier checkpoints are kept"
    else:
        when, remedy = "without any training", "check the weights for NaN and infinity, or try another precision"
    return UserError(metric, f"expected a number, got NaN {when}: {remedy}")


class SetMetrics(nn.Module):
    """The metrics of one set of rows.

    Args:
        objective: defines the loss and the interval.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.means = TokenMeans(objective)
        self.calibration = Calibration()

    def update(self, output: HeadOutput, sources: Tensor | None = None) -> None:
        """Add the tokens of a head's output, as `TokenMeans.update`."""
        self.means.update(output, sources)
        self.calibration.update(output)

    def compute_and_reset(self) -> dict[str, Tensor]:
        """The results of `TokenMeans` and `Calibration` over all ranks."""
        found = self.means.compute() | self.calibration.compute()
        self.means.reset()
        self.calibration.reset()
        return found


class EvaluationMetrics(nn.Module):
    """The metrics of the validation (or test) set, and of each watched set.

    Args:
        objective: defines the loss and the interval.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self._objective = objective
        self._sets = nn.ModuleList([SetMetrics(objective)])
        self.watched: tuple[str, ...] = ()
        """Names of the watched sets."""

    @property
    def sets(self) -> list[SetMetrics]:
        """The validation (or test) set first, then the watched ones."""
        return cast("list[SetMetrics]", list(self._sets))

    def configure(self, datamodule: Any, stage: str) -> None:
        """Set the sources of the validation (or test) set and the watched sets, as the data module names them."""
        own = self.sets[0]
        own.means.set_sources(sources_of(datamodule, "test" if stage == "test" else "validation"))
        self.watched = tuple(getattr(datamodule, "watched", ())) if stage in ("fit", "validate") else ()
        self._sets = nn.ModuleList([own, *(SetMetrics(self._objective) for _ in self.watched)])

    def log(self, module: ProbSFTModule, stage: str) -> None:
        """Log the means over all tokens of all ranks, and those of each watched set; resets them.

        Lightning logs nothing during its sanity check: these metrics of the model before training go to the loggers as
        step 0 and to `module.initial_metrics`. `module.calibration` keeps the bins.

        Raises:
            UserError: the NLL is NaN, so the model is broken; nothing is logged, and no checkpoint follows.
        """
        own, *others = self.sets
        means = own.compute_and_reset()
        # Without tokens all means are NaN; the accuracy is a number otherwise.
        if means["nll"].isnan() and not means["accuracy"].isnan():
            raise not_a_number(f"{stage}/nll", module.trainer.global_step)
        module.calibration = means.pop("bins")
        for name, other in zip(self.watched, others, strict=True):
            found = other.compute_and_reset()
            means |= {f"{name}/{key}": found[key] for key in ("nll", "mean_p", "ece")}
        if module.objective_state.missing:
            for name in ("loss", "inside"):
                means.pop(name)
        logged = {f"{stage}/{name}": value for name, value in means.items()}
        if not module.trainer.sanity_checking:
            nll = f"{stage}/nll"
            module.log_dict({name: logged[name] for name in logged if name != nll}, rank_zero_only=True)
            module.log(nll, logged[nll], prog_bar=True, rank_zero_only=True)
        elif not (module.trainer.ckpt_path and module.initial_metrics):  # else they come from the checkpoint
            module.initial_metrics = {name: value.item() for name, value in logged.items()}
            for logger in module.trainer.loggers:
                logger.log_metrics(module.initial_metrics, step=0)
