"""The zoo of trained networks as a table: `python -m tools.zoo [--speed]`; `--write` renews docs/zoo.md and cards."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml

from model.build import build_model
from prediction.predictor import Predictor
from prediction.zoo import Entry, entries
from tools.paper.published import SOURCE, published
from tools.paper.table import Table
from tools.published import PUBLICATIONS
from util.arguments import Parser
from util.config import load_config
from util.errors import run_main
from util.files import atomic_write
from util.image import RGB

DOCS = Path(__file__).parents[1] / "docs" / "zoo.md"
IMAGES = 20  # over which speed is measured
SIZE = (480, 640)  # of an image
INTRO = """# The zoo

Trained networks by name. `python -m tools.zoo` prints the table with what of it is here, `--speed` images per second.

```sh
python predict.py --weights hmnet-lite --support support --query photos --out out
```

```python
from hmnet import Predictor

predictor = Predictor.from_pretrained("hmnet-pascal-0-resnet50-1")
```

`hmnet-lite` is part of the package. The others are found where `python -m tools.prepare weights` puts them; the error
for one that is not there names the command ([weights](weights.md)). {0-3} are the folds, whose novel classes a network
has not seen. Instead of a name, a checkpoint, a folder that `tools.share` wrote or a repository `user/name` will do.

"""


class Group(NamedTuple):
    """The networks of one method, data set, backbone and number of shots, by fold."""

    name: str
    folds: list[Entry]


def groups() -> list[Group]:
    """All names, the folds of one experiment together."""
    found: dict[str, Group] = {}
    for name, entry in entries().items():
        parts = name.split("-")
        if not entry.about:
            parts[2] = "{0-3}"
        found.setdefault("-".join(parts), Group("-".join(parts), [])).folds.append(entry)
    return list(found.values())


def row(group: Group) -> list[str]:
    """What is the same on every machine: name, method, backbone, parameters, figures, licence."""
    cfg = load_config(group.folds[0].config)
    with torch.device("cpu" if cfg.backbone_name.startswith("timm/") else "meta"):  # timm's need real tensors
        model = build_model(cfg, pretrained=False)
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - learnt
    millions = f"{learnt / 1e6:.1f} + {frozen / 1e6:.1f}"
    return [group.name, cfg.arch, cfg.backbone_name, millions, figures(group), licence(group.folds[0])]


def figures(group: Group) -> str:
    """mIoU of each fold as published, or of zoo.yaml."""
    entry, parts = group.folds[0], group.folds[0].name.split("-")
    if entry.about:
        return "; ".join(f"{each['what']} {each['result']}" for each in entry.about["figures"])
    own = {"net": "resnet50", "method": "manet", "shot": 1}
    wanted = {"net": parts[3], "method": "manet" if parts[0] == "hmnet" else parts[0], "shot": int(parts[4])}
    for each in published("tables")[1 if parts[1] == "pascal" else 2]["rows"]:
        if "own" in each and own | each["own"] == wanted:
            return ", ".join(str(value) for value in each["paper"][:4] if value is not None)
    return ""


def licence(entry: Entry) -> str:
    """Of the weights."""
    if entry.about:
        return str(entry.about["licence"])
    return PUBLICATIONS[entry.family].licence if entry.family in PUBLICATIONS else "not stated"


def here(group: Group) -> list[Entry]:
    """Those whose weights are on this machine."""
    return [entry for entry in group.folds if entry.weights.is_file()]


def size(found: list[Entry]) -> str:
    """Of one network's file, in megabytes."""
    return f"{found[0].open()[1].stat().st_size / 1e6:.1f}" if found else ""


def speed(entry: Entry) -> float:
    """Images per second of one process, images of SIZE and one support mask, after a first one."""
    image: RGB = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    mask[100:300, 200:400] = 1
    predictor = Predictor.from_pretrained(entry.name)
    predictor.set_support([image], [mask])
    predictor.predict(image)
    start = time.perf_counter()
    for _ in range(IMAGES):
        predictor.predict(image)
    return IMAGES / (time.perf_counter() - start)


def table(with_speed: bool) -> Table:
    """The zoo on this machine."""
    columns = ["name", "method", "backbone", "M parameters", "figures", "licence", "here", "MB", "images/s"]
    result = Table("Zoo", columns if with_speed else columns[:-1])
    for group in groups():
        found = here(group)
        cells = [*row(group), f"{len(found)} of {len(group.folds)}", size(found)]
        result.rows.append([*cells, f"{speed(found[0]):.1f}" if found else ""] if with_speed else cells)
    return result


def docs() -> str:
    """The text of docs/zoo.md."""
    result = Table("Names", ["name", "method", "backbone", "M parameters", "figures", "licence"])
    result.rows = [row(group) for group in groups()]
    result.notes = [
        "parameters: learnt + frozen, in millions",
        f"figures of published networks: mIoU of folds 0 to 3, from {SOURCE}",
    ]
    own = [entry for entry in entries().values() if entry.about]
    return INTRO + result.markdown() + "".join(f"\n## {entry.name}\n\n{about(entry)}" for entry in own)


def about(entry: Entry) -> str:
    """What zoo.yaml says of a network of the package."""
    told = entry.about
    lines = [f"{told['summary']}\n", *(f"- **{key}**: {told[key]}" for key in ("data", "recipe", "licence", "date"))]
    measured = Table("", ["measured on", "protocol", "result"])
    measured.rows = [[each["what"], each["protocol"], each["result"]] for each in told["figures"]]
    return "\n".join([*lines, "", measured.markdown().partition("\n\n")[2], told["verdict"], ""])


def cards() -> Iterator[tuple[Path, str]]:
    """The model card of every network of the package and where it belongs."""
    for entry in entries().values():
        if entry.about:
            front = {"license": "other", "pipeline_tag": "image-segmentation", "tags": ["few-shot-segmentation"]}
            head = yaml.safe_dump(front, sort_keys=False)
            yield entry.config.with_name("README.md"), f"---\n{head}---\n\n# {entry.name}\n\n{about(entry)}"


def main() -> None:
    """Print, or write the documents."""
    parser = Parser(prog="python -m tools.zoo", description="Trained networks by name.")
    parser.add_argument("--speed", action="store_true", help="measure images per second of those that are here")
    parser.add_argument(
        "--write", action="store_true", help="renew docs/zoo.md and the cards of the package's networks"
    )
    arguments = parser.parse_args()
    if arguments.write:
        for path, text in [(DOCS, docs()), *cards()]:
            atomic_write(path, text)
            print(path)
        return
    print(table(arguments.speed).markdown())


if __name__ == "__main__":
    run_main(main)
