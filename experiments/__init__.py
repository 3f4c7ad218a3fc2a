"""The paper's figures and tables, one file each, and the benchmarks: `python -m experiments.NAME RUN_OR_SWEEP`.

A study is a function of finished runs, which `runs` reads from manifests and the store alone. `output` draws, writes
and prints what it found.
"""
