"""A run: where it stands, what it writes, and how it goes on after an interruption; both training stages use it.

with claimed_run(...):                                  # nobody else writes its files
    run = Run(...)                                      # a model with its optimisers, at epoch 1 step 0
    with run.started():                                 # or where the newest snapshot stands
        for epoch in run.epochs():                      # seeds; stops early when validation is stale
            for batches in run.batches(dataset):        # of the steps that are left in this epoch
                report = learner.accumulate(batches, forward, target)
                run.stepped(report, rate, learner.step())  # logs; saves when it is time, or a signal came
            run.validate(epoch, measure)                # publishes the weights if they are the best so far
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.learner import Learner, NotFiniteError, Report
from engine.loader import Batch, StepPlan, load_steps
from engine.origin import training_origin
from engine.paths import Paths
from engine.results import TrainingResult, write_result
from engine.snapshot import (
    SAVED_EXIT,
    StopWaiting,
    newest_intact,
    noting_signals,
    read_snapshot,
    snapshots,
    write_snapshot,
)
from model.released import released_state_dict
from util.checkpoint import save_checkpoint
from util.config import Config
from util.errors import UserError
from util.files import atomic_write, remove_temporary
from util.logger import Clock, RunLog
from util.rng import mixed_seed
from util.schema import keys_of

META_TOPICS = ("network", "recipe", "seed")  # of the keys that meta-training depends on
PATIENCE = 60  # seconds that a signal waits for one of several processes to get its next batch or to end validation


@dataclass
class Progress:
    """Where a run stands; plain data for its snapshots."""

    epoch: int = 1  # the one being trained
    step: int = 0  # steps done in it
    validated: float = 0.0  # the last validated position, in epochs; mid-epoch 3 is 2.5
    best: float | None = None
    best_epoch: float = 0.0
    best_file: str = ""
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of every validation
    # By name, over the epoch's steps so far: the sum of a loss and of how many, a metric's counts and of how many.
    losses: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Progress":
        """What `asdict` made of it; versions up to 0.1 called the metrics figures."""
        fields = dict(content)
        return cls(**{"metrics": fields.pop("figures", {}), **fields})

    def add(self, report: Report) -> None:
        """Count one more step."""
        for sums, values in (
            (self.losses, {name: (loss, 1) for name, loss in report.losses.items()}),
            (self.metrics, report.metrics),
        ):
            for name, (amount, of) in values.items():
                before = sums.get(name, [0, 0])
                sums[name] = [before[0] + amount, before[1] + of]


class Run:
    """Epochs and steps that survive signals, kills and full disks; train.py shows how it is used.

    The run ends after `last_epoch`, or when the best validation is `patience` epochs old. `weights` makes the state
    dict to publish of the model that validated best, `topics` are those of the keys that it depends on, `validations`
    are the positions, in epochs, at which there will be one, for the time left.
    """

    def __init__(
        self,
        cfg: Config,
        paths: Paths,
        plan: StepPlan,
        learner: Learner,
        last_epoch: int,
        patience: int,
        weights: Callable[[nn.Module], Mapping[str, Tensor]] = released_state_dict,
        topics: Sequence[str] = META_TOPICS,
        validations: Sequence[float] = (),
    ) -> None:
        if cfg.start_epoch >= last_epoch:
            raise UserError(f"start_epoch: {cfg.start_epoch} should be below the number of epochs ({last_epoch})")
        self.cfg, self.process_group, self.paths, self.plan = cfg, learner.process_group, paths, plan
        self.learner, self.weights, self.topics = learner, weights, topics
        self.last_epoch, self.patience, self.validations = last_epoch, patience, validations
        self.progress = Progress(epoch=cfg.start_epoch + 1)
        self.clock, self.saved_at, self.saved_time = Clock(), (0, 0), time.monotonic()

    @contextmanager
    def started(self, viz: bool = False) -> Iterator[None]:
        """Within the block the run stands where `resume` says and signals wait for the end of a step.

        At a loss or gradient that is not finite the state is saved, and it becomes a UserError; the end of the block
        finishes the run.
        """
        board = self.paths.file("tensorboard") if viz else None
        with ExitStack() as stack:
            self.log = stack.enter_context(RunLog(self.paths.file("log.txt"), board, self.process_group.is_main))
            self.stop = stack.enter_context(noting_signals(0 if self.process_group.size == 1 else PATIENCE))
            self._resume()
            if self.process_group.is_main:
                self._clear_away()
                atomic_write(self.paths.file("config.yaml"), self.cfg.to_yaml())
            bar = tqdm(total=self.iterations, initial=self.iteration, disable=self.process_group.no_bar)
            self.bar = stack.enter_context(bar)
            try:
                yield
            except NotFiniteError as error:
                path = self.save()
                if not self.process_group.is_main:
                    raise SystemExit(2) from error
                raise UserError(f"{error}; the state before this step is saved in {path}") from error
            except StopWaiting:
                if self.process_group.size == 1 and self.saved_at != (self.progress.epoch, self.progress.step):
                    self.save()  # not among several processes, of which others may be in the middle of a step
                self.log.warning("stopped by a signal; `--opts resume auto` goes on from the last snapshot")
                raise SystemExit(SAVED_EXIT) from None
            self._finish()

    @property
    def iteration(self) -> int:
        """Steps done since the beginning of the run, as the schedule counts."""
        return (self.progress.epoch - 1) * self.plan.steps + self.progress.step

    @property
    def iterations(self) -> int:
        """Steps of the whole run."""
        return self.last_epoch * self.plan.steps

    def _resume(self) -> None:
        """Go on from the snapshot that the config names, or from the newest intact one; without any, begin."""
        folder, path = self.paths.snapshots, Path(self.cfg.resume) if self.cfg.resume else None
        if self.cfg.resume == "auto":
            name, is_main = self.paths.snapshot_name, self.process_group.is_main
            path = self.process_group.broadcast(newest_intact(folder, name, self.log.warning) if is_main else None)
            if path is None and snapshots(folder, name):
                raise UserError(f"{folder}: none of its snapshots can be read; begin afresh by --overwrite")
        if path is None:
            return
        content = read_snapshot(path)
        changed = self._check_fit(path, content)
        try:
            self.learner.restore(content)
        except ValueError as error:
            raise UserError(f"{path}: does not fit this configuration: {error}") from error
        self.progress = Progress.read(content["progress"])
        self.saved_at = self.progress.epoch, self.progress.step
        if changed and (self.progress.epoch > self.last_epoch or self.is_stale()):
            raise UserError(
                f"{path}: is of a finished training with other settings: {', '.join(changed)}; "
                "choose another folder by `--opts exp FOLDER`, or begin afresh by --overwrite"
            )
        if changed:
            self.log.warning(f"{path}: resumed with other settings: {', '.join(changed)}")
        self.log.info(f"resumed from {path}: epoch {self.progress.epoch}, step {self.progress.step}")

    def _clear_away(self) -> None:
        """Remove what a killed process of this run had begun to write."""
        remove_temporary(self.paths.snapshots, f"{self.paths.snapshot_name}_[0-9]*.pth")
        remove_temporary(self.paths.best.parent, self.paths.best.name)
        if self.paths.numbered:
            remove_temporary(self.paths.snapshots, f"{self.paths.numbered}_epoch_*.pth")

    def _check_fit(self, path: Path, content: Mapping[str, Any]) -> list[str]:
        """The settings that differ from the snapshot's; UserError when its steps are not this run's steps."""
        then, now = content["world"], self._layout()
        if (then["items"], then["items_per_step"]) != (now["items"], now["items_per_step"]):
            raise UserError(
                f"{path}: was written with {then['items_per_step']} of {then['items']} items a step, now it is "
                f"{now['items_per_step']} of {now['items']}; keep batch_size * accumulate * processes and the data"
            )
        old = content["config"]
        kept = {key: getattr(self.cfg, key) for key in keys_of(*self.topics) if key in old}  # without newer keys
        return [f"{key} {old[key]!r} -> {value!r}" for key, value in kept.items() if value != old[key]]

    def _layout(self) -> dict[str, int]:
        plan = self.plan
        return {"size": self.process_group.size, "items": plan.items, "items_per_step": plan.items_per_step}

    def _settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.cfg.model_dump().items() if key != "resume"}

    def save(self) -> Path:
        """Write a snapshot of this moment; all processes take part, the first one writes."""
        content = {
            **self.learner.state(),
            "progress": asdict(self.progress),
            "world": self._layout(),
            "config": self._settings(),
        }
        self.saved_at, self.saved_time = (self.progress.epoch, self.progress.step), time.monotonic()
        path = Path()
        if self.process_group.is_main:
            path = write_snapshot(
                self.paths.snapshots, self.paths.snapshot_name, *self.saved_at, content, self.cfg.keep
            )
        return self.process_group.broadcast(path)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left; ends early when validation has stopped improving."""
        self.clock = Clock()  # cached crops, which were made before, do not count
        while self.progress.epoch <= self.last_epoch and not self.is_stale():
            yield self.progress.epoch
            self._end_epoch()

    def is_stale(self) -> bool:
        """Whether the best validation is `patience` epochs old."""
        best = self.progress.best_epoch
        return best > 0 and self.progress.epoch - 1 - best >= self.patience

    def batches(
        self, dataset: Dataset[Batch], collate: Callable[[list[Batch]], Batch] | None = None
    ) -> Iterator[list[Batch]]:
        """The batches of every step of this epoch that is left to do."""
        numbers = self.plan.batches(self.cfg.manual_seed + self.progress.epoch, self.progress.step)
        with self.stop.waiting():
            steps = load_steps(dataset, numbers, self.plan.accumulate, self.cfg.loader_worker_count, collate)
        while True:
            with self.stop.waiting():
                batches = next(steps, None)
            if batches is None:
                return
            yield batches

    def seeds(self) -> list[int]:
        """Of what the batches of this step draw, such as dropout: the same over however many processes they spread."""
        group, count = self.process_group, self.plan.accumulate
        numbers = ((self.progress.step * count + batch) * group.size + group.rank for batch in range(count))
        return [mixed_seed(self.cfg.manual_seed, self.progress.epoch, number) for number in numbers]

    def stepped(self, report: Report, rate: float, sizes: Mapping[str, float]) -> None:
        """A step is done: count it, log it, save when it is time to, leave when a signal says so."""
        self.progress.step += 1
        self.progress.add(report)
        self.clock.tick()
        self.bar.update()
        epoch, step = self.progress.epoch, self.progress.step
        where = f"epoch {epoch}/{self.last_epoch} step {step}/{self.plan.steps}"
        if problem := self.learner.problem:
            self.log.info(
                f"{where} skipped, {problem}; the gradient's scale is {self.learner.scaler.get_scale():g} now"
            )
        elif step % self.cfg.print_freq == 0 or step == self.plan.steps:
            items = self.clock.rate * self.plan.items_per_step
            validations = sum(position > self.progress.validated for position in self.validations)
            left = self.clock.left(self.iterations - self.iteration, validations)
            losses = " + ".join(f"{name} {loss:.4f}" for name, loss in report.losses.items())
            watched = " ".join(f"{name} {size:.3g}" for name, size in sizes.items())
            self.log.info(f"{where} loss {report.loss:.4f} ({losses}), {watched}, {items:.2f} items/s, {left} left")
            curves = {"loss": report.loss, **report.losses, "rate": rate, **sizes}
            self.log.curves({f"train/{name}": value for name, value in curves.items()}, self.iteration)
        self.save_or_stop()

    def save_or_stop(self) -> None:
        """Where nothing is half-done: save when `save_minutes` are over; when a signal came, save and exit with 75."""
        due = time.monotonic() - self.saved_time >= 60 * self.cfg.save_minutes
        stop, due = self.process_group.any(self.stop.received is not None, due and self.process_group.is_main)
        if stop or due:
            path = self.save()
        if stop:
            self.log.warning(f"stopped by a signal; saved {path}, `--opts resume auto` goes on from there")
            raise SystemExit(SAVED_EXIT)

    def validate(self, position: float, measure: Callable[[], dict[str, float]]) -> None:
        """Measure metrics with `miou` among them, once per position, and publish the weights if they are the best."""
        progress = self.progress
        if progress.validated >= position:
            return
        if self.saved_at != (progress.epoch, progress.step):
            self.save()  # a kill while validating costs the validation only
        with self.stop.waiting(), self.clock.validation():
            metrics = measure()
        progress.validated = position
        progress.history.append({"epoch": position, **metrics})
        self.log.info(f"epoch {position:g} validation " + " ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        self.log.curves({f"val/{key}": value for key, value in metrics.items()}, self.iteration)
        if progress.best is None or metrics["miou"] > progress.best:
            self._publish(position, metrics["miou"])
        self._write_result()
        self.save_or_stop()

    def _publish(self, position: float, miou: float | None) -> None:
        """Write the best weights, or the last ones without `miou`, and remove the second name of those before."""
        progress, old = self.progress, self.progress.best_file
        progress.best, progress.best_epoch = miou, position
        if self.paths.numbered and miou is not None:
            progress.best_file = self.paths.numbered_best(position, miou).name
        if not self.process_group.is_main:
            return
        content: dict[str, Any] = {"epoch": position, "miou": miou, "trained_on": training_origin(self.cfg)}
        content["config"] = {key: value for key, value in self.cfg.given().items() if key != "resume"}
        content["state_dict"] = self.weights(self.learner.model)
        save_checkpoint(self.paths.best, content)
        if self.paths.numbered and miou is not None:
            save_checkpoint(self.paths.snapshots / progress.best_file, content)
        if old and old != progress.best_file:
            (self.paths.snapshots / old).unlink(missing_ok=True)
        quality = "last weights" if miou is None else f"best so far: mIoU {miou:.4f}"
        self.log.info(f"{quality}, {self.paths.best}")

    def _end_epoch(self) -> None:
        progress = self.progress
        loss = sum(amount / steps for amount, steps in progress.losses.values())
        shares = {name: amount / max(of, 1) for name, (amount, of) in progress.metrics.items()}
        metrics = ", ".join(f"{name} {share:.4f}" for name, share in shares.items())
        self.log.info(f"epoch {progress.epoch} mean loss {loss:.4f} {metrics}")
        self.log.curves(
            {"train/epoch_loss": loss, **{f"train/{name}": share for name, share in shares.items()}}, self.iteration
        )
        done, progress.epoch, progress.step = progress.epoch, progress.epoch + 1, 0
        progress.losses, progress.metrics = {}, {}
        if done % self.cfg.save_freq == 0:
            self.save()

    def _write_result(self, finished: bool = False) -> None:
        if self.process_group.is_main:
            progress = self.progress
            result = TrainingResult(
                path=self.paths.file("result.json"),
                kind="training",
                finished=finished,
                epochs=progress.epoch - 1,
                miou=progress.best,
                epoch=progress.best_epoch,
                weights=str(self.paths.best),
                validations=progress.history,
            )
            write_result(result)

    def _finish(self) -> None:
        """The run has come to its end: save it for `resume`, and write result.json."""
        if self.saved_at != (self.progress.epoch, self.progress.step):
            self.save()
        if self.progress.best is None:
            self._publish(self.progress.epoch - 1, None)
        self._write_result(finished=True)
        progress = self.progress
        best = "no validation" if progress.best is None else f"mIoU {progress.best:.4f}, epoch {progress.best_epoch:g}"
        self.log.info(f"finished after epoch {progress.epoch - 1}; best: {best}")
