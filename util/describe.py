"""The config keys for readers, as a table and as help; `python -m util.describe` renews docs/configuration.md."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from util.config import BASE_DIR, load_config
from util.files import atomic_write
from util.keys import TOPICS
from util.schema import DERIVED, Config, topics_of

DOCS = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: written by `python -m util.describe` -->\n", "<!-- end of keys -->\n"
# The first key of each part of the schema.
PARTS = {
    "data_set": "Data",
    "train_h": "Images",
    "arch": "Network",
    "shot": "Training",
    "evaluate": "Validation while training",
    "base_train_h": "Base learner (train_base.py)",
    "weight": "Testing",
}


def description(key: str) -> str:
    """What a key means."""
    return Config.model_fields[key].description or ""


def choices(key: str) -> tuple[Any, ...]:
    """The values that a key may have, where they can be listed."""
    values = get_args(Config.model_fields[key].annotation)
    return values if values and all(isinstance(value, str) for value in values) else ()


def defaults() -> dict[str, str]:
    """The default of every key as YAML has it, and that of COCO-20i where it is another."""
    pascal, coco = (load_config(BASE_DIR / f"{name}.yaml").model_dump() for name in ("pascal", "coco"))
    texts = {}
    for key in pascal:
        shown = ["" if each[key] is None or key in DERIVED else str(each[key]) for each in (pascal, coco)]
        texts[key] = shown[0] if shown[0] == shown[1] else f"{shown[0]}, COCO {shown[1]}"
    return texts


def key_table() -> str:
    """Tables of Markdown, one for each part of the schema, and what the topics mean."""
    lines, values = [f"- {topic}: {meaning}" for topic, meaning in TOPICS.items()], defaults()
    for key in Config.model_fields:
        if key in PARTS:
            lines += ["", f"## {PARTS[key]}", "", "| key | default | about | meaning |", "|---|---|---|---|"]
        default = f"`{values[key]}`" if values[key] else ""
        lines.append(f"| `{key}` | {default} | {topics_of(key)[0]} | {description(key)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def key_help() -> str:
    """The same for a terminal."""
    lines, values = [], defaults()
    for key in Config.model_fields:
        if key in PARTS:
            lines += ["", f"{PARTS[key]}:"]
        lines.append(f"  {key} ({values[key] or 'empty'})")
        lines += textwrap.wrap(description(key), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:]) + "\n"


def with_table(text: str) -> str:
    """A page whose table is renewed."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + key_table() + END + rest.partition(END)[2]


class HelpConfig(argparse.Action):
    """Print all keys and leave."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        """Print all keys and leave."""
        sys.stdout.write(key_help())
        parser.exit()


if __name__ == "__main__":
    atomic_write(DOCS, with_table(DOCS.read_text(encoding="utf-8")))
