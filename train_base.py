"""Stage 1: the base learner, ordinary semantic segmentation of a fold's base classes.

    python train_base.py --config config/pascal/pascal_split0_resnet50_manet.yaml [--viz] [--opts key value ...]
    torchrun --nproc_per_node 4 train_base.py --config ...

The best weights go where stage 2 looks for them, initmodel/PSPNet/{data_set}/split{i}/{backbone}/best.pth.
Exit codes as those of train.py.
"""

import copy
from argparse import Namespace
from pathlib import Path

from util.arguments import experiment_config, training_arguments

if __name__ == "__main__":
    ARGUMENTS = training_arguments("Train the base learner.")  # before PyTorch, whose import takes seconds

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.benchmarks.table import open_benchmark
from dataset.dataset import BaseImages, collate
from dataset.reading import oversize_note
from engine.claim import claimed_run
from engine.learner import Learner, Output, Tensors
from engine.loader import StepPlan, load_steps, shard_batches
from engine.optim import autocast, make_sgd, poly_rate, set_rates
from engine.paths import Paths
from engine.published import base_miou
from engine.run import Run
from model.build import build_base_learner
from model.inference import fold_batch_norms
from model.loss import cross_entropy
from model.parts.base_learner import PSPNet
from model.released import released_state_dict
from model.resize import resize
from util.config import Config
from util.distributed import ProcessGroup, connect
from util.errors import UserError, run_main
from util.failures import explain_errors
from util.pixels import IGNORE
from util.rng import make_deterministic, seed_all

TOPICS = ("base",)  # of the keys that the base learner depends on


def main(arguments: Namespace) -> None:
    """Connect, train."""
    cfg = experiment_config(arguments, stage=1)
    with (
        explain_errors(),
        connect(cfg.device) as process_group,
        claimed_run(cfg, run_paths(cfg), process_group, arguments.overwrite, TOPICS),
    ):
        train(cfg, process_group, arguments.viz)


def train(cfg: Config, process_group: ProcessGroup, viz: bool = False) -> None:
    """Train until the last epoch, or until validation has stopped improving; config/base explains every key."""
    make_deterministic(cfg.deterministic)
    files = open_benchmark(cfg).base_files("train")
    images = [image for image, _ in files.values()]
    plan = StepPlan(len(images), process_batch(cfg, process_group), cfg.accumulate, process_group).check(
        "base_batch_size"
    )

    seed_all(cfg.manual_seed)
    model = build_base_learner(cfg).to(process_group.device).train()
    sgd = make_sgd([model.backbone.parameters(), model.head.parameters()], cfg.momentum, cfg.weight_decay)
    learner = Learner(model, {"all": sgd}, process_group, cfg.amp, cfg.compile, max_skipped=cfg.max_skipped_steps)
    validated = range(min(cfg.base_val_start_epoch, cfg.base_epochs), cfg.base_epochs + 1)
    run = Run(cfg, run_paths(cfg), plan, learner, cfg.base_epochs, cfg.base_stop_interval, weights, TOPICS, validated)

    validation = BaseImages(cfg, "val")
    with run.started(viz):
        if note := oversize_note(images, cfg.base_train_h, cfg.max_side):
            run.log.warning(note)
        for epoch in run.epochs():
            for batches in run.batches(BaseImages(cfg, "train", cfg.manual_seed, epoch, files), collate):
                rate = poly_rate(cfg.base_lr_encoder, run.iteration, run.iterations, cfg.power)
                set_rates(sgd, rate, cfg.base_index_split)
                report = learner.accumulate(batches, forward, target="label", seeds=run.seeds())
                run.stepped(report, rate, learner.step())
            if epoch in validated:
                run.validate(epoch, lambda: measure(model, cfg, process_group, validation))
        if (own := run.progress.best) is not None and (published := base_miou(cfg)) is not None:
            run.log.info(f"mIoU of the base classes: {100 * own:.2f}, published {published:.2f}")


def process_batch(cfg: Config, process_group: ProcessGroup) -> int:
    """Images of one batch in one process; UserError when base_batch_size does not allow for it."""
    batch, rest = divmod(cfg.base_batch_size, cfg.accumulate * process_group.size)
    if rest or batch < 2:
        raise UserError(
            f"base_batch_size: {cfg.base_batch_size} should be a multiple of processes * accumulate "
            f"({process_group.size} * {cfg.accumulate}), at least two images for each, as batch norms need"
        )
    return batch


def forward(network: nn.Module, batch: Tensors) -> Output:
    """Cross-entropy of a batch of images, and how many of the pixels are right."""
    logits, label = network(batch["image"]), batch["label"]  # (B, 1 + n, H, W), (B, H, W)
    valid = label != IGNORE
    accuracy = torch.stack([((logits.argmax(1) == label) & valid).sum(), valid.sum()])
    loss = cross_entropy(logits, label)
    return Output({"cross_entropy": loss}, {"pixel accuracy": accuracy})


def measure(model: PSPNet, cfg: Config, process_group: ProcessGroup, dataset: BaseImages) -> dict[str, float]:
    """Mean IoU over the base classes on the validation list, at the labels' own sizes, and pixel accuracy."""
    process_group.broadcast_buffers(model)  # on CPUs every process has its own running statistics
    network = copy.deepcopy(model).eval()  # to fold the batch norms of
    fold_batch_norms(network)
    network.to(memory_format=torch.channels_last)
    size = 1 + cfg.base_class_count
    batches = shard_batches(len(dataset), cfg.batch_size_val, process_group)
    confusion = torch.zeros(size, size, dtype=torch.int64, device=process_group.device)  # (label, prediction)
    loader = load_steps(dataset, batches, 1, cfg.loader_worker_count, collate)
    with torch.inference_mode(), autocast(cfg.amp, process_group.device):
        for (batch,) in tqdm(loader, "validation", total=len(batches), disable=process_group.no_bar, leave=False):
            logits = network(batch["image"].to(process_group.device))
            for scores, label in zip(logits.float(), batch["label"], strict=True):
                confusion += count_pairs(
                    resize(scores[None], label.shape).argmax(1)[0], label.to(process_group.device), size
                )
    return metrics(process_group.all_reduce(confusion).cpu())


def count_pairs(prediction: Tensor, label: Tensor, size: int) -> Tensor:
    """How often each label (h, w) in {0 ... size - 1, 255} meets each prediction (h, w): int64 (size, size)."""
    valid = label != IGNORE
    return torch.bincount(label[valid] * size + prediction[valid], minlength=size**2).view(size, size)


def metrics(confusion: Tensor) -> dict[str, float]:
    """Mean IoU over classes 1 ... n, as far as they occur, and pixel accuracy, from counts (1 + n, 1 + n)."""
    right = confusion.diagonal().double()  # on the CPU: not every device has doubles
    union = confusion.sum(0) + confusion.sum(1) - right
    iou = (right / union)[1:]
    return {"miou": iou.nanmean().item(), "pixel_accuracy": (right.sum() / confusion.sum()).item()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights as base-learner checkpoints carry them: released names, and the stages once more as encoder.0 ... 4."""
    state = released_state_dict(model)
    stages = {key.replace("layer", "encoder.", 1): value for key, value in state.items() if key.startswith("layer")}
    return {**state, **stages}


def run_paths(cfg: Config) -> Paths:
    """The run's files, and the place of the base learner among the weights that stage 2 starts from."""
    folder = Path(cfg.exp, cfg.data_set, "PSPNet", f"split{cfg.split}", cfg.backbone_name)
    return Paths(folder, best=cfg.base_learner_path)


if __name__ == "__main__":
    run_main(lambda: main(ARGUMENTS))
