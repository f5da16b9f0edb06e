"""How fast r2l is, beside what others use: every number of a table comes from one interleaved run.

`timing` measures, `contenders` is the table of what is measured, `recipe`, `published` and `libraries`
hold the peers, `memory` measures peaks in fresh processes, `report` writes. Import `benchmarks.run`.
"""
