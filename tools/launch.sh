#!/bin/sh
# Runs an entry point on one or more processes of this machine; the train_*.sh and test_*.sh beside the README use it.
#   sh tools/launch.sh PROCESSES PORT CONFIG SCRIPT [arguments of the script]
# PROCESSES is a number, or `gpus`: one for each visible GPU, one without any. NPROC in the environment overrides it.
# PORT is that of the rendezvous, or `free` for any. PYTHON names the interpreter (.venv/bin/python, else python3).
set -eu
if [ $# -lt 4 ]; then
    echo "usage: sh tools/launch.sh PROCESSES PORT CONFIG SCRIPT [arguments of the script]" >&2
    echo "   eg: sh tools/launch.sh 2 free config/demo.yaml test.py" >&2
    exit 2
fi
processes=${NPROC:-$1} port=$2 config=$3 script=$4
shift 4
if [ ! -f "$config" ]; then
    echo "error: there is no config file $config" >&2
    exit 2
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
if [ "$processes" = gpus ]; then
    processes=$("$PYTHON" -c 'import torch; print(max(torch.cuda.device_count(), 1))')
fi
case $processes in
    '' | 0 | *[!0-9]*)
        echo "error: NPROC=$processes: should be a number of processes, or gpus" >&2
        exit 2
        ;;
esac
if [ "$processes" = 1 ]; then
    exec "$PYTHON" "$script" --config "$config" "$@"
fi
if [ "$port" = free ]; then
    rendezvous=--standalone
else
    rendezvous=--master_port=$port
fi
exec "$PYTHON" -m tools.launch --nproc_per_node "$processes" "$rendezvous" "$script" --config "$config" "$@"
