#!/bin/sh
# Test on the novel classes of a fold of PASCAL-5i, on NPROC processes (default: 1).
set -eu
if [ $# -lt 3 ]; then
    echo "usage: sh test_pascal.sh SPLIT NET EXP [more arguments of test.py]" >&2
    echo "   eg: sh test_pascal.sh 0 resnet50 manet --opts shot 5" >&2
    exit 2
fi
cd "$(dirname "$0")"
config=config/pascal/pascal_split$1_$2_$3.yaml
shift 3
exec sh tools/launch.sh 1 free "$config" test.py "$@"
