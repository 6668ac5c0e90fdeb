"""train.py under the name that it has in the released code for PASCAL-5i: same arguments, same results."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("train.py")), run_name="__main__")
