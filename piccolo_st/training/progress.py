"""What a run shows while it trains: one bar with the time that is left, and each log as lines to be read.

The trackers and the run's record get every number that is logged; a line has those that a person watches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from piccolo_st.evaluation import METRICS, interval

_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding", "data_wait", "alignment", "uniformity")
_UNSHOWN = ("epoch", "total_flos")


class ReadableProgress(ProgressCallback):
    """The progress bar, with the name of the dataset that the step came from behind it, and what is logged above it.

    Args:
        dataset: gives that name, or None.
    """

    def __init__(self, dataset: Callable[[], str | None]) -> None:
        super().__init__()
        self.dataset = dataset

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the dataset's name, then let the bar advance."""
        if self.training_bar is not None and (name := self.dataset()):
            self.training_bar.set_postfix_str(name, refresh=False)
        super().on_step_end(args, state, control, **kwargs)  # type: ignore[no-untyped-call]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Write what was logged, in words."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            for line in log_lines(state.global_step, state.max_steps, logs):
                self.training_bar.write(line)


def log_lines(step: int, steps: int, logs: Mapping[str, float]) -> list[str]:
    """A log in lines: of training, the loss of each dataset on one of its own; of a search, a line for each set.

    Args:
        step: the optimizer step.
        steps: of the run.
        logs: what the trainer logged.
    """
    place = f"step {step:,}/{steps:,}"
    if searched := [key for key in logs if key.endswith("_ndcg@10")]:
        return [f"{place}  {_search(key.removesuffix('_ndcg@10'), logs)}" for key in searched]
    of_datasets = {key: value for key, value in logs.items() if key.startswith("loss_")}
    shown = [key for key in _SHOWN if key in logs]
    shown += [key for key in logs if key not in (*_SHOWN, *_UNSHOWN, *of_datasets)]
    lines = [f"{place}  {_numbers({key: logs[key] for key in shown})}"]
    if of_datasets:
        lines.append(f"{'':{len(place)}}  {_numbers(of_datasets)}")
    return lines


def _search(name: str, logs: Mapping[str, float]) -> str:
    """The scores of one held-out set, in percent."""
    low, high = interval(logs, f"{name}_ndcg@10") or (None, None)
    parts = [f"{label} {100 * logs[name + end]:.2f}" for label, end in METRICS.items() if name + end in logs]
    if low is not None and high is not None:
        parts[0] += f" ({low:.2f} to {high:.2f})"
    return f"{name.removeprefix('eval_')}: {', '.join(parts)}"


def _numbers(values: Mapping[str, object]) -> str:
    return "  ".join(f"{k} {v:,.4g}" if isinstance(v, (int, float)) else f"{k} {v}" for k, v in values.items())
