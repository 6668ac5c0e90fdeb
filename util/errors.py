"""Mistakes of the user, told in one line."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file, key or class and the remedy in one line."""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its code (None is 0); a UserError is one line on stderr and code 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
