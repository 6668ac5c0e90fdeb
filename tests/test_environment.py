"""What a scheduler, a container or a shell has left: variables, closed streams, devices that are not there."""

import subprocess
import sys

import pytest
import torch

from util.distributed import connect, pick_device, place_of_process
from util.errors import UserError

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "RANK: 1 in the environment, but by WORLD_SIZE there are 1 processes; unset it, or"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: 2 in the environment, but by WORLD_SIZE there are 2 processes"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK: '' in the environment is no number; unset it"),
        ({"WORLD_SIZE": "a"}, "WORLD_SIZE: 'a' in the environment is no number"),
        ({"RANK": "-1"}, "RANK: '-1' in the environment is no number"),
        ({"WORLD_SIZE": "0"}, "RANK: 0 in the environment, but by WORLD_SIZE there are 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE: 2 in the environment without MASTER_ADDR; unset it"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "WORLD_SIZE: 2 in the environment without MASTER_PORT"),
    ],
)
def test_variables_that_do_not_fit(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in PLACE:
        monkeypatch.delenv(key, raising=False)
    assert place_of_process() == (0, 1, 0)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError) as caught, connect("cpu"):
        pass
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "hpu", "cuda"])
def test_devices_that_are_not_there(name: str) -> None:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found and found.type == name:
        assert pick_device(name).type == name
        return
    with pytest.raises(
        UserError, match=f"^device: '{name}' is no accelerator that PyTorch finds here, .*use auto or cpu"
    ):
        pick_device(name)


def test_auto_is_what_there_is() -> None:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert pick_device("auto").type == (found.type if found else "cpu") and pick_device("cpu").type == "cpu"
    assert pick_device("cpu:1").index is None
    with pytest.raises(UserError, match="device: 'tpus' should be auto, cpu"):
        pick_device("tpus")


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("2>&-", 2)])
def test_closed_streams(closed: str, code: int) -> None:
    """Work goes on: what is printed, shown as a bar, warned of or said of an error has nowhere to go."""
    program = """
import logging, sys, warnings
from util.errors import UserError, run_main
def main():
    from tqdm import tqdm
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger("x").addHandler(handler)
    for _ in tqdm(range(3)):
        print("line"); warnings.warn("look"); logging.getLogger("x").warning("line")
    if CODE:
        raise UserError("wrong")
run_main(main)
""".replace("CODE", str(code))
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program], capture_output=True)
    assert done.returncode == code
    assert b"Traceback" not in done.stdout + done.stderr
