#!/bin/sh
# BAM's scripts have this name. Here each data set has its own; this one says which.
exec sh "$(dirname "$0")/tools/bam.sh" train "$@"
