"""Names of trained networks: those of this package, and published ones by data set, fold, backbone and shots."""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.evaluation import expected_weights
from util.config import Config, load_config
from util.errors import UserError

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "config"
# A config's name, of which the last part names the method; the project's own is called manet there.
EXPERIMENT = re.compile(r"(pascal|coco)_split(\d)_([a-z]+\d*)_([a-z]+\d*)(_5s)?")


class Entry(NamedTuple):
    """A name of the zoo; `about` is what zoo.yaml says, empty for the published networks."""

    name: str
    config: Path
    about: dict[str, Any]

    @property
    def family(self) -> str:
        """Whose weights these are, as `tools.prepare weights --method` names them."""
        return self.name.partition("-")[0]

    @property
    def weights(self) -> Path:
        """Where they lie, if they are here."""
        return self.config.with_name("model.safetensors") if self.about else expected_weights(load_config(self.config))

    def open(self, overrides: Sequence[str] = ()) -> tuple[Config, Path]:
        """Config and weights; UserError naming the command that fetches weights that are not there."""
        cfg = load_config(self.config, overrides)
        path = self.weights if self.about else expected_weights(cfg)
        if not path.is_file():
            method = "" if self.family == "hmnet" else f" --method {self.family}"
            command = f"python -m tools.prepare weights{method or ' --download checkpoints'}"
            raise UserError(f"{self.name}: its weights are not there ({path}); fetch them by `{command}`")
        return cfg, path


@cache
def entries() -> dict[str, Entry]:
    """All names, the package's own first."""
    own = yaml.safe_load((HERE / "zoo.yaml").read_text(encoding="utf-8"))
    found = {name: Entry(name, HERE / about["folder"] / "config.yaml", about) for name, about in own.items()}
    for path in sorted(CONFIGS.glob("*/*.yaml"), key=lambda path: ("manet" not in path.stem, path)):
        if match := EXPERIMENT.fullmatch(path.stem):
            data, fold, backbone, method, five = match.groups()
            family = "hmnet" if method == "manet" else method
            name = f"{family}-{data}-{fold}-{backbone}-{5 if five else 1}"
            found[name] = Entry(name, path, {})
    return found


def nearest_name(name: str) -> str:
    """The name of the zoo that is most like another."""
    return difflib.get_close_matches(name, entries(), n=1, cutoff=0.0)[0]
