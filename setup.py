"""The wheel holds everything below the package `hmnet`; an editable install takes the tree as it is.

At the top level, folders called `model` or `util` would meet other people's. Their absolute imports are rewritten where
Python's parser finds them, line by line, so that a traceback's line is the line of the tree.
"""

import ast
import shutil
import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

PACKAGE = "hmnet"
ENTRIES = ["predict", "train", "train_base", "test"]
FOLDERS = ["config", "dataset", "engine", "model", "prediction", "tools", "util"]
ROOMS = find_namespace_packages(include=[f"{folder}*" for folder in FOLDERS])
OWN = {*ENTRIES, *ROOMS}
# What messages and help tell the user to type
TYPED = {"python -m tools.": f"{PACKAGE} "} | {f"python {name}.py": f"{PACKAGE} {name}" for name in ENTRIES}


def insertions(source: str) -> list[tuple[int, int, str, str]]:
    """(line, first byte, text there, text in the wheel) of every import of the tree's own modules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and str(node.module).partition(".")[0] in OWN:
            found.append((node.lineno, node.col_offset, "from ", f"from {PACKAGE}."))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] not in OWN:
                    continue
                if len(node.names) > 1 or ("." in alias.name and not alias.asname):
                    raise SyntaxError(
                        f"line {node.lineno}: write `from {alias.name} import ...`, which a wheel can hold"
                    )
                text = f"from {PACKAGE} import " if "." not in alias.name else f"import {PACKAGE}."
                found.append((node.lineno, node.col_offset, "import ", text))
    return sorted(found, reverse=True)


def below_package(source: str) -> str:
    """The text of a module of the tree as it stands in the wheel, line by line the same but for its own imports."""
    lines = source.encode().split(b"\n")
    for number, start, before, after in insertions(source):
        line = lines[number - 1]
        lines[number - 1] = line[:start] + line[start:].replace(before.encode(), after.encode(), 1)
    result = b"\n".join(lines).decode()
    for typed, installed in TYPED.items():
        result = result.replace(typed, installed)
    return result


class BuildPackage(build_py):
    """Copies every module to its place below the package."""

    def run(self) -> None:
        """As ever, without what an earlier build has left."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def find_modules(self) -> list[tuple[str, str, str]]:
        """Modules outside folders, and the package's own two."""
        own = [] if self.editable_mode else [(PACKAGE, name, f"{PACKAGE}.py") for name in ("__init__", "__main__")]
        return [*super().find_modules(), *own]

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copy a module and rewrite the copy."""
        copy, done = super().build_module(module, module_file, package)
        if not self.editable_mode:
            text = Path(module_file).read_text(encoding="utf-8")
            Path(copy).write_text(below_package(text), encoding="utf-8")
        return copy, done


if "editable_wheel" in sys.argv:
    setup(
        packages=ROOMS, py_modules=[PACKAGE, *ENTRIES[:3]], cmdclass={"build_py": BuildPackage}
    )  # not Python's `test`
else:
    setup(
        packages=[f"{PACKAGE}.{room}" for room in ROOMS],
        package_dir={PACKAGE: "."} | {f"{PACKAGE}.{room}": room.replace(".", "/") for room in ROOMS},
        py_modules=[f"{PACKAGE}.{name}" for name in ENTRIES],
        cmdclass={"build_py": BuildPackage},
    )
