"""The benchmarks of the field, one file each; `table` has their names."""
