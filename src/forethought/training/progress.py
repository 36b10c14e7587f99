"""What a training run tells: a progress bar with ETA for people, one JSON line an event for programs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forethought.atomic import atomic_file


class ProgressBar(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for this base
    """A bar on standard error, and a line for each validation.

    Args:
        metric: the validation metric that is shown, such as ``ndcg@10``.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.loss = ""
        self.shown = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,  # a file gets the lines alone
        )
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, loss="")
        self.progress.start()
        self.progress.console.print(
            f"training in {Path(args.output_dir).parent}", highlight=False, markup=False, soft_wrap=True
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        if self.progress is not None and now - self.shown > 0.2:
            self.shown = now
            self.progress.update(self.task, completed=state.global_step, loss=self.loss)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}"
        valid = logs.get(f"valid/{self.metric}")
        if valid is not None and self.progress is not None:
            mark = "  [green]best[/green]" if state.best_metric is None or valid > state.best_metric else ""
            self.progress.console.print(
                f"epoch {state.epoch or 0:.2f}  step {state.global_step}  {self.loss}  "
                f"valid {self.metric} {valid:.4f}{mark}",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class JsonLines(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for this base
    """Appends every logged event to ``log.jsonl``: ``{"step": …, "epoch": …, "seconds": …, "loss": …}``.

    A resumed run begins with the history its checkpoint holds, so the file never tells a step twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        with atomic_file(self.path) as scratch:
            scratch.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))
        self.file = self.path.open("a", buffering=1)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.file is not None:
            self.file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None
