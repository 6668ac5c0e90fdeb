#!/bin/sh
# Stage 1, the base learner of a fold, on NPROC processes (default: one for each visible GPU).
set -eu
if [ $# -lt 4 ]; then
    echo "usage: sh train_base.sh PORT DATASET SPLIT NET [more arguments of train_base.py]" >&2
    echo "   eg: sh train_base.sh 1234 pascal 0 resnet50" >&2
    exit 2
fi
cd "$(dirname "$0")"
port=$1 config=config/$2/$2_split$3_$4_manet.yaml
shift 4
exec sh tools/launch.sh gpus "$port" "$config" train_base.py --viz "$@"
