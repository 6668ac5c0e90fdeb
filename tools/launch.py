"""torchrun, with the exit codes of what it runs and errors of one line: `python -m tools.launch TORCHRUN_ARGUMENTS`.

torchrun itself exits with 1 and a traceback whatever happened. Here the exit code is that of the process that failed
first (128 + N if signal N ended it), and 75 when SIGTERM or SIGINT, which torchrun passes on, stopped the run.
"""

import os
import sys
from collections.abc import Sequence

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from engine.snapshot import SAVED_EXIT
from util.errors import UserError, run_main


def launch(arguments: Sequence[str]) -> int:
    """The exit code of torchrun's processes; UserError when it cannot meet the other machines or take the port."""
    # With the store that agents share, a machine that takes the place of one that failed waits for the others in vain:
    # they do not tell their address again.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as stop:
        print(f"stopped by {stop.sigval.name}", file=sys.stderr)
        return SAVED_EXIT
    except DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"torchrun: {reason}; choose another port, or check the rendezvous address") from error
    return 0


if __name__ == "__main__":
    run_main(lambda: launch(sys.argv[1:]))
