"""How peeling grows: time and memory at 100,000, 1M and 10M samples: `python -m benchmarks.scale [--corpus PATH] [--n N …]`.

Corpora are generated with the df curve and the numbers of types of the real one (or of a made-up one), so that df grows with n
and M stays. Each is written to a temporary folder by one process and peeled by another, whose peak memory is what is measured;
what that process takes before it has read anything (the interpreter, numpy, numba, compiled code) is shown apart. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.corpora import generated, made_up_df, made_up_lengths, peak_memory, print_table, real_incidence, ties

LIMIT_EXPONENT, LIMIT_BYTES = 1.1, 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--side", default="response")
    parser.add_argument("--n", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        print(json.dumps(peel_folder(Path(arguments.child))))
        return 0
    if arguments.corpus:
        real = real_incidence(arguments.corpus, arguments.side)
        df, lengths = real.df(), real.lengths()
    else:
        df, lengths = made_up_df(), made_up_lengths()
    found = []
    for n in arguments.n:
        with tempfile.TemporaryDirectory() as folder:
            incidence = generated(n, df, lengths)
            np.save(f"{folder}/indptr.npy", incidence.indptr)
            np.save(f"{folder}/indices.npy", incidence.indices)
            del incidence
            command = [sys.executable, "-m", "benchmarks.scale", "--child", folder]
            found.append({"n": n, **json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)})
    rows = []
    for before, now in zip([None, *found], found, strict=False):
        ratio = now["nnz"] / before["nnz"] if before else None
        exponent = f"{np.log(now['seconds'] / before['seconds']) / np.log(ratio):.2f}" if before else ""
        own = now["peak"] - now["start"]
        rows.append(
            [
                f"{now['n']:,}",
                f"{now['types']:,}",
                f"{now['nnz']:,}",
                f"{now['transpose']:.2f}",
                f"{now['seconds']:.2f}",
                f"{1e9 * now['seconds'] / now['nnz']:.0f}",
                exponent,
                f"{now['peak'] / 2**20:,.0f}",
                f"{now['peak'] / now['nnz']:.1f}",
                f"{own / now['nnz']:.1f}",
            ]
        )
    header = ["n", "M", "nnz", "transpose s", "transpose + peel s", "ns per nnz", "exponent", "peak MiB", "bytes per nnz", "less start"]
    print_table(f"Growth of peeling (limits: exponent ≤ {LIMIT_EXPONENT}, ≤ {LIMIT_BYTES} bytes per nonzero)", header, rows)
    return 0


def peel_folder(folder: Path) -> dict[str, float]:
    """Return time and memory of peeling the incidence in a folder; the compiled code is loaded before the clock starts."""
    from diversity.selection.peel import birth, peel
    from diversity.typings.incidence import Incidence

    small = Incidence(np.array([0, 2, 3]), np.array([0, 1, 1], dtype=np.int32), 2)
    birth(small, peel(small, ties(2)))
    start = peak_memory()
    indptr, indices = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
    incidence = Incidence(indptr, indices, int(indices.max()) + 1)
    tie = ties(incidence.n_types)
    begun = time.process_time()
    columns = incidence.transpose()
    turned = time.process_time()
    position = peel(incidence, tie, columns)
    done = time.process_time()
    births = birth(incidence, position)
    assert births.max() == incidence.n_types
    figures = {"transpose": turned - begun, "seconds": done - begun, "start": start, "peak": peak_memory()}
    return {**figures, "types": incidence.n_types, "nnz": incidence.nnz}


if __name__ == "__main__":
    raise SystemExit(main())
