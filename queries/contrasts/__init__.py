"""What `queries.contrast` is made of: the units compared, the ways to compare them, the statistics.

`chosen` has the units and their pooled activations; `of_sets`, `of_pairs`, `of_values` and
`of_target` are the ways; `two_sets`, `paired`, `trend` and `probe` the statistics of each, `scores`
their bounds and order; `contrasted` the answer, and `sql` the macro.
"""
