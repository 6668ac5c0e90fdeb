#!/bin/sh
# The steps of Dockerfile without Docker: a copy of the tracked files, its RUN lines but the system's packages, its CMD.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$(dirname "$0")/.."
git ls-files -z | tar --null --files-from=- -cf - | tar -xf - -C "$folder"
cd "$folder"
sed -n 's/^RUN //p' Dockerfile | grep -v '^apt-get' | sh -ex
make demo
