"""The one training loop: ``transformers.Trainer`` fed with whole batches, and made safe to kill at any moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerControl, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from forethought.atomic import PLACE
from forethought.data.batches import LengthBuckets
from forethought.errors import ArtefactError, RecipeError
from forethought.training.checkpoints import checkpoint_path, checkpoints, publish, seal, verify
from forethought.training.devices import find_device, find_precision
from forethought.training.ema import AverageWeights, ExponentialMovingAverage
from forethought.training.memory import keep_freed_memory
from forethought.training.progress import JsonLines, ProgressBar
from forethought.training.recipe import Recipe

AVERAGE = "average.safetensors"  # of the weights, beside model.safetensors in a checkpoint
WRITER = re.compile("PytorchStreamWriter|inline_container|unexpected pos")  # torch's words for a file it cannot write
LOG_STEPS = 50  # the running loss is brought from the device once in so many steps


class Examples(Protocol):
    """What is learned from: rows that turn into whole batches."""

    lengths: Tensor  # int64, of each row

    def __len__(self) -> int: ...

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """A batch; its ``target``, int64 ``[B, L]``, is 0 where nothing is to be predicted."""
        ...


class Trainer(transformers.Trainer):  # type: ignore[misc]  # transformers ships no types for this base
    """Trains a model as its recipe says; a subclass says what its validation is.

    The batches of the resumed epoch that were already used are skipped without being built; every process takes its
    share of each global batch, and the loss is divided by the number of targets of the whole optimiser step, so that
    accumulation and several processes give the loss of one process and one big batch; but what a loss compares within
    a batch it compares within each part.

    Args:
        model: ``forward(**batch, num_targets)`` returns an output with ``loss``.
        examples: what is learned from.
        recipe: what to do.
        folder: the run folder; checkpoints go to ``folder/checkpoints``, events to ``folder/log.jsonl``.
        validates: whether there is anything to validate on.
        device: ``cpu``, ``cuda`` …; by default what accelerate finds.
        quiet: no progress bar.
        callbacks: further transformers callbacks.

    Raises:
        RecipeError: the recipe asks for what this machine or data cannot give.
    """

    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        examples: Examples,
        recipe: Recipe,
        folder: Path,
        *,
        validates: bool,
        device: str | None = None,
        quiet: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.recipe = recipe
        self.folder = Path(folder)
        arguments = training_arguments(recipe, self.folder / "checkpoints", device, evaluates=validates)
        try:
            super().__init__(
                model,
                arguments,
                train_dataset=examples,
                eval_dataset=[],  # the base class asks for one; what is validated is the subclass's
                callbacks=[JsonLines(self.folder / "log.jsonl"), *(callbacks or [])],
            )
        except (RuntimeError, ValueError, ImportError) as error:
            raise RecipeError(f"This machine cannot train as recipe {recipe.name} asks: {error}") from error
        vars(model.config).pop("use_cache", None)  # the base class writes it into every config
        self.remove_callback(PrinterCallback)
        self.progress = None if quiet or not self.is_world_process_zero() else ProgressBar(recipe.training.select_by)
        if self.progress is not None:
            self.add_callback(self.progress)
        self.buckets = LengthBuckets(
            examples.lengths, recipe.training.batch_size, recipe.seed, self.args.process_index, self.args.world_size
        )
        self.average: ExponentialMovingAverage | None = None
        if recipe.training.ema_decay > 0:
            self.average = ExponentialMovingAverage(model, recipe.training.ema_decay)
            self.add_callback(AverageWeights(self.average))
        self._seconds_before = 0.0
        self._began = time.monotonic()

    def fit(self, resume: bool = False) -> None:
        """Train to the end and leave the best weights in the model (their average, where the recipe keeps one).

        Args:
            resume: go on from the newest checkpoint, if there is one.

        Raises:
            ArtefactError: the newest checkpoint or the best is damaged or of another number of processes, all are gone,
                or the folder cannot be written.
        """
        newest = self._newest() if resume else None
        keep_freed_memory()
        # different noise in each process; on resume the states in the checkpoint replace it
        torch.manual_seed(self.recipe.seed + self.args.process_index)
        self._began = time.monotonic()
        try:
            self.train(resume_from_checkpoint=str(newest) if newest else None)
        except OSError as error:
            if not _of_the_place(error):
                raise
            raise self._cannot_write(error) from error
        finally:
            if self.progress is not None:
                self.progress.close()
        self.take_best()

    def _newest(self) -> Path | None:
        """The checkpoint to go on from; None before the first was written.

        Raises:
            ArtefactError: it or the best one is damaged, another number of processes wrote it, or all that were written
                are gone.
        """
        folder = Path(self.args.output_dir)
        found = list(checkpoints(folder).values())
        if not found:
            if self._has_saved():
                raise ArtefactError(f"{folder} has lost its checkpoints; train again in another --out.")
            return None
        *earlier, newest = found
        advice = f"Remove that folder to go on from {earlier[-1].name}." if earlier else "Train again in another --out."
        try:
            verify(newest)
        except ArtefactError as error:
            raise ArtefactError(f"{error} {advice}") from error
        # one file of random states a process; the base class goes on without its own
        written, processes = {path.name for path in newest.glob("rng_state*.pth")}, self.args.world_size
        names = {f"rng_state_{index}.pth" for index in range(processes)} if processes > 1 else {"rng_state.pth"}
        if written != names:
            raise ArtefactError(
                f"{newest} was written with processes {len(written)}, not {processes}; start as many or choose another "
                "--out."
            )
        # the state names the best checkpoint by step; where the run folder lies may have changed
        best = json.loads((newest / "trainer_state.json").read_text())["best_global_step"]
        if best is not None:
            try:  # before anything is trained, though only the end needs it
                verify(checkpoint_path(folder, best))
            except ArtefactError as error:
                raise ArtefactError(f"{error} It is the best so far; train again in another --out.") from error
        return newest

    def _has_saved(self) -> bool:
        """Whether the log goes on after the first checkpoint was due."""
        log, every = self.folder / "log.jsonl", self.recipe.training.evaluate_every
        lines = log.read_text().split("\n")[:-1] if log.is_file() else []  # a kill may have left half a line
        key, first = ("epoch", 1) if every == "epoch" else ("step", every)
        return any(json.loads(line)[key] > first for line in lines)

    @property
    def seconds(self) -> float:
        """Spent training and validating so far, in all processes that this run took one after the other."""
        return round(self._seconds_before + time.monotonic() - self._began, 3)

    # -- batches and loss

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        # The sampler's element is an array of rows and the data set turns it into a batch at once, so a "batch" of one
        # element is all torch has to collate.
        return DataLoader(
            self.train_dataset,
            batch_sampler=BatchSampler(self.buckets, batch_size=1, drop_last=False),  # type: ignore[arg-type]
            collate_fn=itemgetter(0),
            pin_memory=self.args.device.type == "cuda",
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        count = sum((torch.count_nonzero(batch["target"]) for batch in batch_samples), start=torch.tensor(0)).to(device)
        return self.accelerator.reduce(count) if self.args.world_size > 1 else count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        outputs = model(**inputs, num_targets=num_items_in_batch)
        # DistributedDataParallel averages gradients over processes; the loss is already divided by all their targets
        loss = outputs.loss * self.args.world_size if self.args.world_size > 1 else outputs.loss
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        return 0  # an estimate nobody reads, and a walk over all parameters each step

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        # at its end already, and killed before the run was closed
        if self.state.global_step >= self.state.max_steps or self._out_of_patience():
            self.control.should_training_stop = True
            return
        self.buckets.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    # -- validation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate with the averaged weights, where there are any; ``{"valid/ndcg@10": …}``."""
        with self.average.in_model() if self.average is not None else contextlib.nullcontext():
            metrics = {f"valid/{name}": value for name, value in self.validate().items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validate(self) -> dict[str, float]:
        """The metrics of the model as it is, by name; all processes have to return the same."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its validation is.")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        value = metrics[f"valid/{self.recipe.training.select_by}"]
        better = self.state.best_metric is None or value > self.state.best_metric
        if better:
            self.state.best_metric = value
            self.state.best_global_step = self.state.global_step
        self.control.should_training_stop |= self._out_of_patience()
        return bool(better)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_log |= self.control.should_evaluate  # each point of the learning curve has its loss
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _out_of_patience(self) -> bool:
        key, best = f"valid/{self.recipe.training.select_by}", self.state.best_global_step
        if not self.recipe.training.patience or best is None:
            return False
        worse = sum(key in entry and entry["step"] > best for entry in self.state.log_history)
        return bool(worse >= self.recipe.training.patience)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:  # of this process only, so wrong after a resume
            return
        loss = logs.get("loss")
        if loss is not None and not abs(loss) < float("inf"):
            raise RecipeError(
                f"Training diverged: the loss is {loss} at step {self.state.global_step}; "
                "lower training.learning_rate or training.max_grad_norm, or use --training.precision fp32."
            )
        logs["seconds"] = self.seconds
        super().log(logs, start_time)

    # -- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, step = Path(self.args.output_dir), self.state.global_step
        scratch = folder / f".checkpoint-{step}.part"
        try:
            if self.args.should_save:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._save_rng_state(str(scratch))
            self._save_optimizer_and_scheduler(str(scratch))
            self._save_scaler(str(scratch))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.save_model(str(scratch), _internal_call=True)
                if self.average is not None:
                    safetensors.torch.save_file(self.average.state_dict(), scratch / AVERAGE)
                self.state.save_to_json(str(scratch / "trainer_state.json"))
                seal(scratch)
                publish(scratch, folder, step, self.state.best_global_step)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            if not _of_the_place(error):
                raise
            failure = self._cannot_write(error)
            shutil.rmtree(scratch, ignore_errors=True)
            raise failure from error
        self.accelerator.wait_for_everyone()

    def _cannot_write(self, error: Exception) -> ArtefactError:
        folder = Path(self.args.output_dir)
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        if shutil.disk_usage(self.folder).free < 2**20:  # torch and safetensors say it in words of their own
            reason = os.strerror(errno.ENOSPC)
        kept = list(checkpoints(folder).values())[-1:]
        advice = f"{kept[0]} is intact, go on from it with --resume" if kept else "choose another --out"
        return ArtefactError(f"Cannot write to {self.folder}: {reason}; {advice}.")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # the base class would add its arguments as a pickle
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        progress: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        if self.state.log_history:
            self._seconds_before = self.state.log_history[-1].get("seconds", 0.0)
        return progress

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load_state_dict(_read(Path(resume_from_checkpoint) / AVERAGE))

    @property
    def best(self) -> float | None:
        """The best value of ``select_by`` so far; None where nothing was validated."""
        best: float | None = self.state.best_metric
        return best

    def take_best(self) -> None:
        """Put the best weights into the model: those of the best checkpoint, or of the last step where nothing was
        validated."""
        best = self.state.best_global_step
        if best is not None:
            checkpoint = checkpoint_path(Path(self.args.output_dir), best)
            verify(checkpoint)
            self._load_from_checkpoint(str(checkpoint))
        if self.average is not None:
            self.average.copy_to_model()
        for wrapper in ("forward", "_original_forward"):  # accelerate's autocast
            self.model.__dict__.pop(wrapper, None)


def check_trackers(recipe: Recipe) -> None:
    """Refuse experiment trackers that are not there, in either phase.

    Raises:
        RecipeError: ``transformers`` does not know one, or it is not installed.
    """
    for phase in filter(None, (recipe.training, recipe.post_training)):
        try:
            for tracker in get_reporting_integration_callbacks(list(phase.report_to)):
                tracker()
        except (RuntimeError, ValueError, ImportError) as error:
            raise RecipeError(f"This machine cannot train as recipe {recipe.name} asks: {error}") from error


def training_arguments(recipe: Recipe, output: Path, device: str | None, *, evaluates: bool) -> TrainingArguments:
    """The recipe in the words of ``transformers``."""
    training = recipe.training
    every: Literal["epoch", "steps"] = "epoch" if training.evaluate_every == "epoch" else "steps"
    steps = 500 if training.evaluate_every == "epoch" else training.evaluate_every
    chosen = find_device(device)
    if chosen.index:
        raise RecipeError(
            f"Training takes the first device it sees; for {device!r} set CUDA_VISIBLE_DEVICES={chosen.index} and use "
            f"--device {chosen.type}."
        )
    arguments = TrainingArguments(
        output_dir=str(output),
        run_name=recipe.name,
        seed=recipe.seed,
        use_cpu=chosen.type == "cpu",
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=max(training.batch_size // int(os.environ.get("WORLD_SIZE", "1")), 1),
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type="constant_with_warmup" if training.scheduler == "constant" else training.scheduler,
        warmup_steps=training.warmup_steps,
        optim="adamw_torch_fused",
        bf16=find_precision(training.precision, chosen) == "bf16",
        eval_strategy=every if evaluates else "no",
        eval_steps=steps,
        save_strategy=every,
        save_steps=steps,
        logging_steps=LOG_STEPS,
        logging_nan_inf_filter=False,
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
    )
    _ = arguments.device  # settles the process group, and with it the number of devices below
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs in one process would be DataParallel; several processes are wanted
    return arguments


def _of_the_place(error: Exception) -> bool:
    """Whether the run folder could not be written, and not something else failed, such as a tracker's connection."""
    if isinstance(error, OSError):
        return error.errno in PLACE
    return isinstance(error, safetensors.SafetensorError) or WRITER.search(str(error)) is not None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}.") from error
