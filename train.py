"""Stage 2: meta-training of a method on the base classes of a fold.

    python train.py --config config/pascal/pascal_split0_resnet50_manet.yaml [--viz] [--opts key value ...]
    torchrun --nproc_per_node 4 train.py --config ...

Exit code 0: finished; 2: an error, in one line; 75: stopped by SIGTERM, SIGINT or SIGUSR1 with everything saved,
`--opts resume auto` goes on.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from math import ceil
from pathlib import Path

from util.arguments import experiment_config, training_arguments

if __name__ == "__main__":
    ARGUMENTS = training_arguments("Meta-train a method.")  # before PyTorch, whose import takes seconds

import torch
from torch import nn

from dataset.benchmarks.table import open_benchmark, test_config
from dataset.dataset import TrainingEpisodes, collate
from dataset.episode import check_possible, empty_classes
from dataset.index import ImageIndex, load_index, validation_count
from dataset.reading import oversize_note
from engine.cached_crops import stored_crops
from engine.claim import claimed_run
from engine.evaluation import EpisodeSet, make_episodes, run_episodes
from engine.learner import Learner, Output, Tensors
from engine.loader import StepPlan
from engine.metric import count_pixels
from engine.optim import method_optimizers
from engine.panels import panel_drawer
from engine.paths import Paths, run_name, run_tag
from engine.run import META_TOPICS, Run
from model.build import build_model
from model.methods.method import Method
from util.config import Config
from util.distributed import ProcessGroup, connect
from util.errors import UserError, run_main
from util.failures import explain_errors
from util.image import RGB
from util.pixels import IGNORE
from util.rng import make_deterministic, seed_all
from util.visualize import fit

PANELS = 8  # episodes of a validation that TensorBoard shows, the same every time as long as their seed is
PANEL_SIZE = (240, 960)  # pixels that they are reduced to


def main(arguments: Namespace) -> None:
    """Connect, train."""
    cfg = experiment_config(arguments)
    with (
        explain_errors(),
        connect(cfg.device) as process_group,
        claimed_run(cfg, run_paths(cfg), process_group, arguments.overwrite, META_TOPICS),
    ):
        train(cfg, process_group, arguments.viz)


def train(cfg: Config, process_group: ProcessGroup, viz: bool = False) -> None:
    """Train until the last epoch, or until validation has stopped improving; config/base explains every key."""
    make_deterministic(cfg.deterministic)
    with process_group.main_first():  # one process scans the masks
        index, files = load_index(cfg, "train")
        novel = load_index(test_config(cfg), "val") if cfg.evaluate else None
    for each in [index, *(novel or ())[:1]]:
        check_possible(each, cfg.shot)
    classes, names = open_benchmark(cfg).wanted("train"), open_benchmark(test_config(cfg)).names()
    plan = StepPlan(len(index.images), cfg.batch_size, cfg.accumulate, process_group).check("batch_size")

    seed_all(cfg.manual_seed)
    model = build_model(cfg).to(process_group.device).train()
    if not model.is_trained:
        raise UserError(f"arch: {cfg.arch} is not trained; test it by `python test.py --arch {cfg.arch} --config ...`")
    schedules = method_optimizers(model, cfg)
    optimizers = {name: schedule.optimizer for name, schedule in schedules.items()}
    # Some parameters get no gradient: those behind the last block's support, and the shot weights of one shot.
    learner = Learner(model, optimizers, process_group, cfg.amp, cfg.compile, True, cfg.max_skipped_steps)
    positions = [half / 2 for half in range(1, 2 * cfg.epochs + 1) if validates(cfg, half / 2)]
    run = Run(cfg, run_paths(cfg), plan, learner, cfg.epochs, cfg.stop_interval, validations=positions)
    middle = round(plan.steps / 2) + 1  # as the released code counts

    @lru_cache(maxsize=1)
    def episodes(seed: int) -> EpisodeSet:
        assert novel is not None
        return make_episodes(cfg, seed, validation_count(cfg, novel[0]), novel)

    def validate(position: float) -> None:
        if validates(cfg, position):
            drawn = episodes(cfg.manual_seed + (0 if cfg.fix_random_seed_val else run.progress.epoch))
            run.validate(position, lambda: measure(run, model, drawn, names, viz))

    with run.started(viz):
        announce(run, model, index, novel and novel[0], [image for image, _ in files.values()])
        with process_group.main_first(), run.stop.waiting():
            crops = stored_crops(cfg, model, index, files) if cfg.cached_crops else None
        for epoch in run.epochs():
            dataset = TrainingEpisodes(cfg, index, files, classes, cfg.manual_seed, epoch, crops, model.images)
            for batches in run.batches(dataset, collate):
                if run.progress.step == middle:
                    validate(epoch - 0.5)
                rates = [schedule.set_rates(run.iteration, run.iterations) for schedule in schedules.values()]
                report = learner.accumulate(batches, partial(forward, model), target="query_mask", seeds=run.seeds())
                run.stepped(report, rates[0], learner.step())
            if run.progress.step == middle:
                validate(epoch - 0.5)
            validate(epoch)


def announce(run: Run, model: Method, index: ImageIndex, novel: ImageIndex | None, images: Sequence[Path]) -> None:
    """Say what is trained on what, how long an epoch is, and what of the data is left out."""
    cfg, names = run.cfg, open_benchmark(run.cfg).names()
    learnt, frozen = (sum(p.numel() for p in model.parameters() if p.requires_grad == x) / 1e6 for x in (True, False))
    run.log.info(f"{cfg.arch} on {run.process_group.device}: {learnt:.2f} M parameters learn, {frozen:.2f} M do not")
    counts = ", ".join(f"{names[class_id]} {len(of_class)}" for class_id, of_class in index.by_class.items())
    run.log.info(f"{cfg.data_set} split {cfg.split}: {len(index.images)} training images ({counts})")
    often = (
        f", validated on {validation_count(cfg, novel)} episodes from epoch {cfg.val_start_epoch} on" if novel else ""
    )
    run.log.info(f"an epoch has {run.plan.steps} steps of {run.plan.items_per_step} episodes{often}")
    if note := oversize_note(images, cfg.train_h, cfg.max_side):
        run.log.warning(note)
    if empty := empty_classes(index, names):
        run.log.warning(f"left out of the draw, as no training image shows enough of them: {empty}")
    if novel and (empty := empty_classes(novel, open_benchmark(test_config(cfg)).names())):
        run.log.warning(f"not validated on, as no image shows enough of them: {empty}")


def measure(
    run: Run, model: Method, episode_set: EpisodeSet, names: Mapping[int, str], panels: bool = False
) -> dict[str, float]:
    """Figures of a validation; with `panels` some of its episodes are shown in TensorBoard."""
    shown: list[tuple[str, RGB]] = []
    draw = panel_drawer(episode_set, names, PANELS, lambda *panel: shown.append(panel)) if panels else None
    result = run_episodes(model, run.cfg, episode_set, run.process_group, observe=draw)
    for title, image in (panel for panels_there in run.process_group.gather(shown) for panel in panels_there):
        run.log.image(f"novel/{title}", fit(image, *PANEL_SIZE), run.iteration)
    return {"miou": result.miou, "fb_iou": result.fb_iou, "piou": result.piou}


def forward(method: Method, network: nn.Module, batch: Tensors) -> Output:
    """Losses of a batch of episodes, its foreground IoU, and the foreground's share of the crops.

    `network` is the method as it runs on several processes.
    """
    truth = batch["query_mask"].long()
    scores = network(batch["query"], batch["support"], batch["support_mask"], episode_class=batch["class_index"])
    masks = torch.cat([truth.unsqueeze(1), batch["support_mask"]], dim=1)  # (B, 1 + K, H, W)
    metrics = {
        "foreground IoU": count_pixels(scores.final.argmax(1), truth)[1],
        "foreground share": torch.stack([(masks == 1).sum(), (masks != IGNORE).sum()]),
    }
    return Output(method.losses(scores, truth), metrics, method.item_means)


def validates(cfg: Config, position: float) -> bool:
    """Whether to validate after `position` epochs; half an epoch is its middle. The last epoch is always validated."""
    epoch, in_middle = ceil(position), position % 1 > 0
    if in_middle:
        often = cfg.SubEpoch_val and (cfg.epochs <= 100 or epoch > 101)  # as the released code does
        return cfg.evaluate and often and epoch >= cfg.val_start_epoch
    return cfg.evaluate and epoch >= min(cfg.val_start_epoch, cfg.epochs)


def run_paths(cfg: Config) -> Paths:
    """The run's files; runs of more shots share the folder and so carry their shots in their names."""
    best = cfg.best_weights(cfg.shot)
    return Paths(cfg.experiment_dir, best, tag=run_tag(cfg.shot), numbered=run_name(cfg.shot))


if __name__ == "__main__":
    run_main(lambda: main(ARGUMENTS))
