"""Writing databases: run a model and SAEs over a corpus, and change what is stored.

The only home of torch. `operations` holds one file per verb. An ingest loads its `inputs`, goes
through the stages of `prepare`, runs partitions with `extract` on one of the `engines`, and ends in
`publish`, which merges segments (`compaction`) and writes what is computed from them (`derive`).
"""
