"""The shell: stages and tools as Ray jobs. It wires `diversity` and `training` to clusters and computes nothing itself."""
