#!/bin/sh
# Installs PyTorch's CPU builds where no NVIDIA driver is found and their index answers within seconds; else does nothing,
# and pip takes the default ones. Usage: sh tools/cpu_wheels.sh PYTHON INDEX
set -u
if [ -z "$2" ] || [ "$(uname)" != Linux ] || [ -e /proc/driver/nvidia ] || command -v nvidia-smi > /dev/null; then exit 0; fi
ask='import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5).read(1)'
if timeout 10 "$1" -c "$ask" "$2" 2> /dev/null; then
    echo "no NVIDIA driver: PyTorch's CPU builds"
    "$1" -m pip install torch torchvision --index-url "$2" --timeout 15 --retries 2 || echo "not offered: the default builds"
else
    echo "PyTorch's CPU builds cannot be reached: the default ones"
fi
