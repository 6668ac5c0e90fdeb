#!/bin/sh
# Meta-training on PASCAL-5i, on NPROC processes (default: one for each visible GPU).
set -eu
if [ $# -lt 4 ]; then
    echo "usage: sh train_pascal.sh PORT SPLIT NET EXP [more arguments of train.py]" >&2
    echo "   eg: sh train_pascal.sh 1234 0 resnet50 manet --opts batch_size 4" >&2
    exit 2
fi
cd "$(dirname "$0")"
port=$1 config=config/pascal/pascal_split$2_$3_$4.yaml
shift 4
exec sh tools/launch.sh gpus "$port" "$config" train.py --viz "$@"
