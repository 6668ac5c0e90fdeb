"""A trained network to share: `python -m tools.share WEIGHTS --out DIR [--push USER/NAME]`.

Writes model.safetensors, config.yaml and README.md, a model card with the figures of the tests that have been made.
`Predictor.from_pretrained` takes the folder or the repository.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor

from dataset.benchmarks.table import open_benchmark
from engine.metric import percent
from model.backbone.build import build_backbone, load_pretrained
from model.build import build_model
from model.released import load_weights, released_state_dict
from prediction.predictor import find_config
from prediction.shared import CARD, CONFIG, LEFT_OUT, WEIGHTS, backbone_tensors, digest
from tools.paper.published import SOURCE
from tools.paper.runs import read_json
from tools.paper.table import Table
from util.config import Config, load_config
from util.errors import UserError, first_line, run_main
from util.files import atomic_write
from util.schema import YamlDumper, keys_of

# Keys of the config that mean something on another machine.
DATA = ("data_set", "num_classes", "folds", "split", "use_split_coco")
KEYS = (*DATA, "shot", "arch", "layers", "vgg", "backbone", "train_w", *keys_of("network", "recipe"))
CARD_TEXT = """---
license: {licence}
pipeline_tag: image-segmentation
tags: [few-shot-segmentation, hmnet]
---

# HMNet, {data_set}, fold {split}, {shot} shot

A network of *{paper}*: it segments in an image what a few others show, also classes that it never saw.

{about}
{figures}
## Use

```python
from prediction.predictor import Predictor

predictor = Predictor.from_pretrained("{name}")
predictor.set_support(["cat1.jpg", "cat2.jpg"], ["cat1.png", "cat2.png"])
prediction = predictor.predict("holiday.jpg")  # .mask, .probability, .score
```
"""


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.share", description="Put a trained network into a folder.")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="checkpoint of a trained network")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: what training left by the weights")
    parser.add_argument("--results", nargs="+", type=Path, metavar="FILE", help="result_test_*.json; default: by them")
    parser.add_argument("--licence", default="unknown", metavar="ID", help="for the card, such as mit (unknown)")
    parser.add_argument("--without-backbone", action="store_true", help="leave out what torchvision provides")
    parser.add_argument("--push", metavar="USER/NAME", help="upload it to this repository of the Hugging Face hub")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key value ..., instead of the config's")
    return parser.parse_args(words)


def share(arguments: argparse.Namespace) -> None:
    """Write the folder; UserError, with nothing written, where weights and config do not fit or it is not ours."""
    out: Path = arguments.out
    if out.exists() and (others := {path.name for path in out.iterdir()} - {WEIGHTS, CONFIG, CARD}):
        raise UserError(f"--out {out}: holds other files, such as {min(others)}; give a folder of its own")
    cfg = load_config(arguments.config or find_config(arguments.weights), arguments.opts)
    model = build_model(cfg, pretrained=False)
    load_weights(model, arguments.weights)
    tensors = {name: tensor.contiguous() for name, tensor in released_state_dict(model).items()}
    about = {key: str(getattr(cfg, key)) for key in ("data_set", "split", "shot", "backbone_name")}
    if arguments.without_backbone:
        about[LEFT_OUT] = leave_out_backbone(cfg, tensors)
    results = own_results(arguments.weights) if arguments.results is None else arguments.results
    card = model_card(cfg, [read_json(path) for path in results], arguments.licence, arguments.push or str(out))
    settings = {key: getattr(cfg, key) for key in KEYS}
    atomic_write(out / WEIGHTS, save(tensors, metadata={"format": "pt", **about}))
    atomic_write(out / CONFIG, yaml.dump(settings, Dumper=YamlDumper, sort_keys=False))
    atomic_write(out / CARD, card)


def leave_out_backbone(cfg: Config, tensors: dict[str, Tensor]) -> str:
    """Take torchvision's backbone out of a network's tensors and return its digest; UserError where it is another."""
    own = backbone_tensors(tensors)
    if cfg.stem == "torchvision" or cfg.backbone_name == "vgg":
        pretrained = build_backbone(cfg)
        load_pretrained(pretrained, cfg)
        if digest({name: tensors.pop(name) for name in own}) == digest(pretrained.state_dict()):
            return digest(own)
    raise UserError(f"--without-backbone: these weights' is not torchvision's {cfg.backbone_name}; share it whole")


def own_results(weights: Path) -> list[Path]:
    """The results of tests of these very weights that lie in their experiment's folder."""
    found = sorted(weights.resolve().parent.parent.glob("result_test*.json"))
    return [path for path in found if Path(read_json(path).get("weights") or "").resolve() == weights.resolve()]


def model_card(cfg: Config, results: Sequence[dict[str, Any]], licence: str, name: str) -> str:
    """The text of README.md; `results` are what test.py has written."""
    about = Table("Network", ("", ""))
    try:
        names = open_benchmark(cfg).names()
        novel = ", ".join(names[number] for number in open_benchmark(cfg).wanted("val"))
    except UserError:  # a data set of one's own that is not at hand
        novel = f"those of fold {cfg.split}"
    about.rows = [
        ("data set", f"{cfg.data_set}, {cfg.num_classes} classes in {cfg.folds} folds"),
        ("novel classes, on which it is tested", novel),
        ("backbone", cfg.backbone_name),
        ("shots that it is trained for", str(cfg.trained_shot or cfg.shot)),
        ("ensemble with a base learner", "yes" if cfg.ensemble else "no"),
        ("side of the images that it sees", f"{cfg.val_size} pixels"),
    ]
    tests = Table("Figures on novel classes", ("test", "seeds", "episodes", "mIoU", "FB-IoU"))
    for content in results:
        tests.rows.append(_figures(content))
    text = {"licence": licence, "data_set": cfg.data_set, "split": cfg.split, "shot": cfg.shot, "name": name}
    figures = f"{tests.markdown()}\n" if results else ""
    return CARD_TEXT.format(**text, paper=SOURCE, about=about.markdown(), figures=figures)


def _figures(content: dict[str, Any]) -> Sequence[str]:
    try:
        tested, figures = content["config"], content["aggregate"]
        cells = []
        for key in ("miou", "fb_iou"):
            mean, std = figures[key]["mean"], figures[key]["std"]
            cells.append(percent(mean) + ("" if std is None else f" ± {percent(std)}"))
        seeds = ", ".join(str(row["seed"]) for row in content["results"])
        episodes = str(len(content["results"][0]["episode_iou"]))
        return (f"{tested['data_set']}, {tested['shot']} shot, {tested['ann_type']}", seeds, episodes, *cells)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"--results: not the result of a test: {error} is missing; give what test.py wrote") from None


def push(folder: Path, name: str) -> str:
    """Upload the folder's files to a repository, which is made if it is not there; returns its address."""
    from huggingface_hub import HfApi  # a second that folders do not need

    try:
        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[WEIGHTS, CONFIG, CARD])
        return str(address)
    except Exception as error:  # of the network, the hub, the token: many classes of several packages
        raise UserError(f"--push {name}: the hub refused: {first_line(error)}") from error


def main(words: Sequence[str] | None = None) -> None:
    """Write, push, say where it is."""
    arguments = parse_arguments(words)
    share(arguments)
    print(arguments.out)
    if arguments.push:
        print(push(arguments.out, arguments.push))


if __name__ == "__main__":
    run_main(main)
