"""HMNet as a package: `from hmnet import Predictor`, and the command `hmnet` for every entry point of the tree.

    hmnet predict --support support --query photos --out out
    hmnet train --config config/pascal/pascal_split0_resnet50_manet.yaml

In a wheel this file is `hmnet/__init__.py` and `hmnet/__main__.py`, with all folders beside it (setup.py).
"""

import ast
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENTRIES = [HERE / f"{name}.py" for name in ("predict", "train", "train_base", "test")]
TOOLS = [file for file in sorted(HERE.glob("tools/*.py")) if "run_main(" in file.read_text(encoding="utf-8")]
FILES = {file.stem: file for file in (*ENTRIES, *TOOLS)}


def __getattr__(name: str) -> Any:
    if name != "Predictor":  # imported when it is asked for, as PyTorch takes seconds
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prediction.predictor import Predictor

    return Predictor


def run_command(name: str, words: list[str]) -> None:
    """Run an entry point as if its file had been called with these words."""
    spec = spec_from_file_location("__main__", FILES[name])
    assert spec and spec.loader
    module = module_from_spec(spec)
    module.__spec__ = None  # as of a script: processes that it spawns find it by its file
    sys.modules["__main__"], sys.argv = module, [f"hmnet {name}", *words]
    spec.loader.exec_module(module)


def overview() -> str:
    """Every command with the first line of its file."""
    lines = ["usage: hmnet COMMAND ..., hmnet COMMAND --help", ""]
    for name, file in FILES.items():
        title = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        lines.append(f"  {name:<12}{re.split(': `|; | [(]', title)[0].rstrip('.')}")
    return "\n".join(lines)


def main() -> int:
    """The console command."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name not in FILES:
        print(f"hmnet: there is no command {name}; hmnet --help lists them", file=sys.stderr)
        return 2
    run_command(name, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
