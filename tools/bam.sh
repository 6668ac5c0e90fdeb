#!/bin/sh
# Says in one line what takes the place of a script of BAM's: sh tools/bam.sh SCRIPT [DATASET SPLIT NET]
script=$1 data=${2:-pascal} split=${3:-split0} net=${4:-resnet50}
words="${split#split} $net bam"
case $script in
    train) command="sh train_$data.sh 1234 $words" ;;
    test) command="sh test_$data.sh $words" ;;
    *) command="sh test_$data.sh $words --generalized" ;;
esac
echo "error: $script.sh is BAM's; the command here is: $command" >&2
exit 2
