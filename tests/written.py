"""Results as test.py would leave them, with the numbers that a test wants."""

from pathlib import Path
from typing import Any

from engine.results import EpisodeRow, OneClassResult, SeedMetrics, write_result
from util.config import Config

CLASSES = {1: "cat", 2: "dog"}


def seed_metrics(seed: int = 321, miou: float = 0.5, fb_iou: float = 0.75, **more: Any) -> SeedMetrics:
    """Metrics of one seed, whose mean over episodes is 10 points below mIoU."""
    about = {"piou": 0.4, "class_iou": {1: miou}, "class_episodes": {1: 7}, "episode_iou": [0.5] * 7, "query_images": 5}
    times = {"seconds": 60.0, "seconds_per_episode": 0.01}
    interval = {"mean_episode_iou": miou - 0.1, "interval": (miou - 0.2, miou)}
    return SeedMetrics(**{"seed": seed, "miou": miou, "fb_iou": fb_iou, **about, **times, **interval, **more})


def write_test(cfg: Config, *metrics: SeedMetrics, path: Path | None = None, **more: Any) -> Path:
    """Leave a result; returns its path."""
    path = path or cfg.experiment_dir / f"result_test_{cfg.shot}shot{'_bbox' if cfg.ann_type == 'bbox' else ''}.json"
    rows = [*(metrics or [seed_metrics()])]
    about = {"method": "HMNet", "config": cfg.model_dump(), "classes": CLASSES, "results": rows, **more}
    write_result(OneClassResult(path=path, kind="test", **about))
    return path


def episode_row(number: int, right: int, **more: Any) -> EpisodeRow:
    """One of 100 pixels of union, so many of them right."""
    pixels = {"iou": right / 100, "intersection": (0, right), "union": (0, 100)}
    about = {"seed": 5, "number": number, "query": f"{number}.jpg", "class_id": 1 + number % 2, "support": ["s.jpg"]}
    return EpisodeRow(**{**about, "class": CLASSES[1 + number % 2], "hard": number % 4 < 2, **pixels, **more})
