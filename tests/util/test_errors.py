"""How entry points end."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from util.errors import UserError, run_main
from util.files import atomic_write


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("a.yaml: shot: 0 should be greater than 0")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: a.yaml: shot: 0 should be greater than 0\n")


@pytest.mark.parametrize("code", [None, 0, 1, 75])
def test_exit_code(code: int | None) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: code)
    assert (ended.value.code or 0) == (code or 0)


def test_an_interruption_is_one_word_and_ends_by_its_signal() -> None:
    stop = "import signal; from util.errors import run_main; run_main(lambda: signal.raise_signal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", stop], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "stopped\n")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)


def test_reader_that_leaves_is_no_error() -> None:
    talk = "from util.errors import run_main; run_main(lambda: print('line ' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", talk], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_other_broken_pipes_are_errors() -> None:
    def main() -> None:
        raise BrokenPipeError("a worker is gone")

    with pytest.raises(BrokenPipeError, match="a worker"):
        run_main(main)


def test_what_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for main, said in (
        (lambda: atomic_write(tmp_path / "file" / "a.md", "table"), "file"),
        (lambda: atomic_write(Path("/proc/none/a.md"), "table"), "/proc/none"),
        (full, "cannot write: No space left on device"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        err = capsys.readouterr().err
        assert ended.value.code == 2 and said in err and err.count("\n") == 1
