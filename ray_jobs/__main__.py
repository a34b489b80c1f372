"""`sft-diversity COMMAND …`, the same as `python -m ray_jobs COMMAND …`: runs a stage or a tool as a program.

A command's line here is all that this file knows of it; its flags are its own (`sft-diversity COMMAND --help`).
"""

from __future__ import annotations

import runpy
import sys

from diversity.config import near_matches

# In the order of use. A stage takes an experiment's configuration; a tool takes what it looks at.
STAGES = {
    "pipeline": "run all of an experiment's stages in order",
    "ingest": "read files of any known format into a corpus",
    "regenerate": "have one model answer every instruction anew",
    "heldout": "take out the samples that models are scored on",
    "profile_corpus": "give every sample its types: tokens, tags, topics",
    "build_datasets": "choose, write and check every dataset of the grid",
    "sweep": "fine-tune and score a model on each dataset",
    "answer": "have runs and other models answer prompt sets",
    "judge": "have models compare those answers, pair by pair",
    "analyze": "turn scores into effects and a report",
}
TOOLS = {
    "formats": "what files hold, and the first sample as training sees it",
    "pick": "choose one dataset out of any file, beside a random one",
    "measure": "diversity metrics of files or datasets, side by side",
    "certify": "check what sealed datasets promise",
    "explain": "say why a sample is in a dataset, or is not",
    "export": "write datasets for LLaMA-Factory, Axolotl, TRL, datasets",
    "power": "what a planned grid can see",
    "compare": "two experiments side by side",
    "judgments": "AlpacaEval's and Arena-Hard's files, in and out",
    "submit": "run an experiment on a cluster, and follow it",
    "status": "what of an experiment is sealed, and what goes on",
    "clean": "remove artifacts that no experiment names",
}
COMMANDS = STAGES | TOOLS
EXAMPLE = "sft-diversity pick data.jsonl --size 1000 --out picked.jsonl"


def usage() -> str:
    """Return the list of commands."""
    lines = [f"usage: sft-diversity COMMAND …        e.g. {EXAMPLE}"]
    titles = {"Tools, on any file or sealed folder": TOOLS, "Stages: COMMAND CONFIG.yaml [key=value …] [--dry-run]": STAGES}
    for title, commands in titles.items():
        lines += ["", title, *(f"  {name:<15} {told}" for name, told in commands.items())]
    return "\n".join([*lines, "", "sft-diversity COMMAND --help says more about one."])


def main() -> None:
    """Run the named module as a program; its exit code is ours."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help", "help"):
        print(usage(), file=sys.stdout if name else sys.stderr)
        raise SystemExit(0 if name else 2)
    if name not in COMMANDS:
        print(f"sft-diversity: unknown command {name!r}{near_matches(name, COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"ray_jobs.{name}" if name in STAGES else f"ray_jobs.tools.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
