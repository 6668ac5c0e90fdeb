#!/bin/sh
# Makes the runs that tables of the paper still lack, one after the other, then prints the tables. Run it again after an
# interruption: what is done stays done.
#   sh tools/reproduce.sh TABLE [TABLE ...] [--config FILE] [--splits 0 ...] [--seeds 321 ...]
# PYTHON names the interpreter (.venv/bin/python, else python3).
set -eu
case " ${*:---help} " in
    *" -h "* | *" --help "*)
        echo "usage: sh tools/reproduce.sh TABLE [more arguments of tools.report]" >&2
        echo "   eg: sh tools/reproduce.sh 3" >&2
        exit 2
        ;;
esac
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
export PYTHON
python() { "$PYTHON" "$@"; } # as the commands call it
commands=$("$PYTHON" -m tools.report "$@" --commands)
if [ -n "$commands" ]; then
    # With `echo` for Python and one process, a command says which entry point it would run with which arguments.
    (
        python() { echo "$@"; }
        export PYTHON_REAL="$PYTHON" PYTHON=echo NPROC=1
        eval "$commands" | PYTHON="$PYTHON_REAL" "$PYTHON_REAL" -m tools.plan
    )
fi
while [ -n "$commands" ]; do
    command=${commands%%
*}
    commands=${commands#"$command"}
    commands=${commands#
}
    echo "+ $command"
    eval "$command"
done
"$PYTHON" -m tools.report "$@"
