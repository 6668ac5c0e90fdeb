"""A trained network to share: `python -m tools.share WEIGHTS --out DIR [--push USER/NAME]`.

Writes model.safetensors, config.yaml and README.md, a model card with the metrics of these weights' tests.
`Predictor.from_pretrained` takes the folder or the repository.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from safetensors.torch import save
from torch import Tensor

from dataset.benchmarks.table import open_benchmark
from engine.identity import method_name
from engine.metric import percent
from engine.origin import checkpoint_config
from engine.results import OneClassResult, ResultFile, read_result, stale
from model.backbone.build import build_backbone, imagenet_file, load_pretrained
from model.build import build_model
from model.released import DIGEST, load_weights, released_state_dict
from prediction.shared import CARD, CONFIG, LEFT_OUT, WEIGHTS, backbone_tensors, digest
from tools.paper.published import SOURCE
from tools.paper.table import Table
from util.arguments import Parser
from util.checkpoint import read_metadata
from util.config import Config, load_config
from util.errors import UserError, first_line, run_main
from util.failures import explain_errors
from util.files import atomic_write, claimed
from util.schema import YamlDumper, keys_of

# Keys of the config that mean something on another machine.
DATA = ("data_set", "num_classes", "folds", "split", "use_split_coco")
KEYS = (*DATA, "shot", "arch", "layers", "vgg", "backbone", "train_w", *keys_of("network", "recipe"))
CARD_TEXT = """---
{front}---

# {method}, {data_set}, fold {split}, {shot} shot

A network of *{paper}*: it segments in an image what a few others show, also classes that it never saw.

{about}
{metrics}
## Use

```python
from hmnet import Predictor

predictor = Predictor.from_pretrained("{name}")
predictor.set_support(["cat1.jpg", "cat2.jpg"], ["cat1.png", "cat2.png"])
prediction = predictor.predict("holiday.jpg")  # .mask, .probability, .score
```
"""


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m tools.share", description="Put a trained network into a folder.")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="checkpoint of a trained network")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: what training left by the weights")
    parser.add_argument("--results", nargs="+", type=Path, metavar="FILE", help="result_test_*.json; default: by them")
    parser.add_argument("--licence", default="unknown", metavar="ID", help="for the card, such as mit (unknown)")
    parser.add_argument("--without-backbone", action="store_true", help="leave out what torchvision provides")
    parser.add_argument("--half", action="store_true", help="store numbers in 16 bits")
    parser.add_argument("--push", metavar="USER/NAME", help="upload it to this repository of the Hugging Face hub")
    parser.add_opts("key value ..., instead of the config's")
    return parser.parse_args(words)


def share(arguments: argparse.Namespace) -> None:
    """Write the folder; UserError, with nothing written, where weights and config do not fit or it is not ours."""
    out: Path = arguments.out
    source = arguments.weights, arguments.opts
    cfg = load_config(arguments.config, arguments.opts) if arguments.config else checkpoint_config(*source)
    model = build_model(cfg, pretrained=False)
    load_weights(model, arguments.weights)
    tensors = {name: tensor.contiguous() for name, tensor in released_state_dict(model).items()}
    if arguments.half:
        tensors = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    about = {key: str(getattr(cfg, key)) for key in ("data_set", "split", "shot", "backbone_name")}
    without = ""
    if arguments.without_backbone:
        about[LEFT_OUT], without = leave_out_backbone(cfg, tensors), f"torchvision's, `{imagenet_file(cfg)}`"
    elif any(name.endswith(DIGEST) for name in tensors):
        without = "timm's, which is fetched when the network is built"
    results = own_results(arguments, method_name(cfg))
    card = model_card(cfg, results, arguments.licence, arguments.push or str(out), without)
    given = cfg.given()
    settings = {key: given[key] for key in KEYS if key in given}
    with claimed(out, is_shared):
        atomic_write(out / WEIGHTS, save(tensors, metadata={"format": "pt", **about}))
        atomic_write(out / CONFIG, yaml.dump(settings, Dumper=YamlDumper, sort_keys=False))
        atomic_write(out / CARD, card)


def is_shared(path: Path) -> bool:
    """Whether a file is the weights of a network that this command has written."""
    return path.name == WEIGHTS and "data_set" in read_metadata(path)


def leave_out_backbone(cfg: Config, tensors: dict[str, Tensor]) -> str:
    """Take torchvision's backbone out of a network's tensors and return its digest; UserError where it is another."""
    own = backbone_tensors(tensors)
    if cfg.stem == "torchvision" or cfg.backbone_name == "vgg":
        pretrained = build_backbone(cfg)
        load_pretrained(pretrained, cfg)
        if digest({name: tensors.pop(name) for name in own}) == digest(pretrained.state_dict()):
            return digest(own)
    raise UserError(f"--without-backbone: these weights' is not torchvision's {cfg.backbone_name}; share it whole")


def own_results(arguments: argparse.Namespace, method: str) -> list[OneClassResult]:
    """The results of tests of these very weights by this method: those named, or that lie in their experiment's folder.

    There, a warning names those of weights that lay at the same path before. UserError for a named result of others.
    """
    weights: Path = arguments.weights
    named = arguments.results is not None
    beside = sorted(weights.resolve().parent.parent.glob("result_test*.json"))
    taken = []
    for path in arguments.results if named else beside:
        result = read_result(path, OneClassResult if named else ResultFile)
        if not isinstance(result, OneClassResult) or not (named or (result.method == method and result.weights)):
            continue
        same_path = Path(result.weights or "").resolve() == weights.resolve()
        reason = stale(result, weights) if result.method == method else f"{path}: a test of {result.method}"
        if not reason and not same_path and not result.weights_digest:
            reason = f"{path}: does not say of which weights it is; test again"
        if not reason:
            taken.append(result)
        elif named:
            raise UserError(f"--results: {reason}")
        elif same_path:
            warnings.warn(reason, stacklevel=2)
    return taken


def model_card(cfg: Config, results: Sequence[OneClassResult], licence: str, name: str, without: str) -> str:
    """The text of README.md; `without` names a backbone that is not among the weights."""
    about = Table("Network", ("", ""))
    try:
        names = open_benchmark(cfg).names()
        novel = ", ".join(names[number] for number in open_benchmark(cfg).wanted("val"))
    except UserError:  # a data set of one's own that is not at hand
        novel = f"those of fold {cfg.split}"
    about.rows = [
        ("data set", f"{cfg.data_set}, {cfg.num_classes} classes in {cfg.folds} folds"),
        ("novel classes, which it has not seen", novel),
        ("backbone", f"{cfg.backbone_name}, not in this folder: {without}" if without else cfg.backbone_name),
        ("shots that it is trained for", str(cfg.trained_shot or cfg.shot)),
        ("ensemble with a base learner", "yes" if cfg.ensemble else "no"),
        ("side of the images that it sees", f"{cfg.val_size} pixels"),
    ]
    columns = ("test", "classes", "seeds", "episodes", "query images", "mIoU", "FB-IoU")
    tests = Table("Metrics on novel classes", columns)
    for result in results:
        tests.rows.append(_metrics(result))
        tests.notes += _reservations(result)
    front = {"license": licence, "pipeline_tag": "image-segmentation", "tags": ["few-shot-segmentation", "hmnet"]}
    text = {"data_set": cfg.data_set, "split": cfg.split, "shot": cfg.shot, "name": name, "method": method_name(cfg)}
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    metrics = f"{tests.markdown()}\n" if results else ""
    return CARD_TEXT.format(**text, front=head, paper=SOURCE, about=about.markdown(), metrics=metrics)


def _metrics(result: OneClassResult) -> Sequence[str]:
    """A row of the card."""
    cells = []
    for key in ("miou", "fb_iou"):
        mean, std = result.aggregate[key].mean, result.aggregate[key].std
        cells.append(percent(mean) + ("" if std is None else f" ± {percent(std)}"))
    cfg, first = result.cfg, result.results[0]
    images = "/".join(str(row.query_images or "-") for row in result.results)
    drawn = sum(iou is not None for iou in first.class_iou.values())
    classes = f"{drawn} of {len(first.class_iou) + len(result.left_out)}"
    seeds = ", ".join(str(row.seed) for row in result.results)
    data = cfg.test_set or cfg.data_set
    return (f"{data}, {cfg.shot} shot, {cfg.ann_type}", classes, seeds, str(len(first.episode_iou)), images, *cells)


def _reservations(result: OneClassResult) -> list[str]:
    """What a reader of a test's metrics should know: classes that they leave out, and the notes of the test."""
    first, notes = result.results[0], list(result.test.notes if result.test else ())
    missed = [result.classes.get(c, str(c)) for c, iou in first.class_iou.items() if iou is None]
    for names, reason in ((result.left_out, "left out, with too few images"), (missed, "never drawn")):
        notes += [f"classes {reason}: {', '.join(names)}"] if names else []
    return [f"{result.path.stem.removeprefix('result_')}: {note}" for note in notes]


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
    with explain_errors("give another --out"):
        share(arguments)
    print(arguments.out)
    if arguments.push:
        print(push(arguments.out, arguments.push))


if __name__ == "__main__":
    run_main(main)
