"""The shell: stages and tools as Ray jobs. It wires `diversity` and `training` to clusters and computes nothing itself.

The files here are the stages, one job each, in the order of `pipeline.py`: ingest, regenerate, heldout, profile_corpus, build_datasets,
sweep, answer, judge, analyze.
`tasks/` runs on workers, `job/` is what all jobs share, `tools/` is what people ask of sealed results, `report/` draws them.
"""
