from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diversity.artifact import ArtifactError
from diversity.cell import TYPINGS
from diversity.effects import EFFECTS_SCHEMA, RESULTS_SCHEMA
from ray_jobs import analyze
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, main
from ray_jobs.tasks import redraw
from ray_jobs.tasks.planned import seal_plan
from tests.ray_jobs import made_up
from training.config import SftConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
experiment: made-up
storage: {storage}
corpus: {{paths: ["builtin:python-docs"]}}
grid: {{strategies: {strategies}, sizes: [1000], levels: 7}}
evaluation: {{heldout: {{in: {{fraction: 0.02}}, out: null}}, evaluators: [nll]}}
report: {{note: Nothing was measured here., samples: {samples}}}
"""
ALL = [*TYPINGS, "random"]
FEW = ["response-micro", "random"]
SCORED = {f"response-micro_n1000_l{label}_s0" for label in ("000", "050", "100")} | {"random_n1000_s0"}


def context_of(folder, strategies=ALL, samples="true"):
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(storage=folder / "runs", strategies=json.dumps(strategies), samples=samples), "utf-8")
    return Context(load_experiment(path, [], inside_job=False), path)


def build(context, scored=(), metrics=True):
    """Seal datasets, scores and metrics of the grid as the stages before do, with made-up content."""
    storage, index = context.storage, context.index
    cells = context.experiment.cells
    tables = made_up.tables(cells, lambda cell: cell.name in scored)
    by_cell = [{} for _ in tables]
    for group, table in zip(by_cell, tables):
        for row in table.to_pylist():
            group.setdefault(row["cell"], []).append(row)
    facts, coverage, sources, results, measured = by_cell
    for cell in cells:
        (row,) = facts[cell.name]
        texts = pa.table({"instruction": [f"<b>{cell.name}</b>"] * 5, "response": ["x" * 1000] * 5})
        dataset = storage.artifact("datasets", f"d-{cell.name}").begin()
        dataset.write(texts)
        manifest = {
            "cell": cell.describe(),
            "samples": row["samples"],
            "content": f"content-{cell.name}",
            "tokens": {"instruction": row["instruction_tokens"], "response": row["response_tokens"]},
            "coverage": {c["typing"]: c["coverage"] for c in coverage[cell.name]},
            "sources": {s["source"]: s["samples"] for s in sources[cell.name]},
            "pool_size": row["pool_size"],
        }
        if row["k"] is not None:
            manifest["target"] = {"k_requested": row["k"], "k_realised": row["k"], "M": row["M"]}
        index.add("datasets", cell.name, dataset.seal(manifest))
        if metrics:
            artifact = storage.artifact("metrics", f"m-{cell.name}").begin()
            artifact.write(pa.Table.from_pylist(measured[cell.name]).drop_columns(["cell"]))
            index.add("metrics", cell.name, artifact.seal({}))
        if cell.name in scored:
            add_score(context, cell.name, results[cell.name])
    return index


def add_score(context, name, rows, content=None):
    columns = ("run", "evaluator", "split", "metric", "value", "se", "n", "higher_is_better", "primary")
    artifact = context.storage.artifact("scores", f"s-{name}-{content}").begin()
    artifact.write(pa.Table.from_pylist([{c: row[c] for c in columns} for row in rows]))
    context.index.add("scores", f"{name}_t0", artifact.seal({"content": content or f"content-{name}"}))


def add_profile(context, typing):
    curve = made_up.curve(n=3000)
    artifact = context.storage.artifact("profile", f"p-{typing}").begin()
    artifact.write(pa.table({"df": curve.df}), "vocabulary/part-00000.parquet")
    artifact.seal({"typing": typing, "n": 114660, "M": curve.band["n_mid"], "nnz": 10**6, "empty": 60, "band": curve.band})
    context.index.add("profile", typing, artifact)


def add_peel(context, typing):
    labels = [f"tag <{i}>" for i in range(40)]
    artifact = context.storage.artifact("peel", f"k-{typing}").begin()
    artifact.write(pa.table({"label": labels, "position": list(range(40, 0, -1)), "df": list(range(100, 140))}))
    context.index.add("peel", typing, artifact.seal({}))


def page_of(context):
    return context.storage.read_bytes("experiments/made-up/report/index.html").decode()


def table_of(artifact, name):
    return pq.read_table(f"{artifact.storage.uri}/{artifact.path}/{name}")


def test_partial_scores_from_seals_to_the_report(tmp_path, capsys):
    context = context_of(tmp_path)
    index = build(context, SCORED)
    add_profile(context, "response-micro")
    analyze.run(context)
    told = capsys.readouterr().out
    assert "response-micro_n1000_l050_s0" in told and "response-macro_n1000" not in told
    assert "and 39 further cells without a score" in told
    assert told.rstrip().endswith(f"report: {tmp_path}/runs/experiments/made-up/report/index.html")
    results = table_of(index.get("results"), "results.parquet")
    assert results.schema == RESULTS_SCHEMA
    assert results.num_rows == 39 + 2 * 4  # a row for each cell without a score, two splits for the others
    assert len(set(results["cell"].to_pylist())) == 43
    effects = table_of(index.get("results"), "effects.parquet")
    assert effects.schema == EFFECTS_SCHEMA
    slopes = [row for row in effects.to_pylist() if row["kind"] == "slope" and row["estimate"] is not None and row["predictor"] == "level"]
    assert {row["strategy"] for row in slopes} == {"response-micro"}
    notes = {row["note"] for row in effects.to_pylist() if row["kind"] == "correlation"}
    assert notes == {f"a correlation needs {n} datasets, there are 4" for n in (7, 8)}  # length held takes one more
    page = page_of(context)
    assert page.index("Nothing was measured here.") < page.index("<h1>")
    assert page.count(">not trained<") == 2 * 5  # five strategies, under each of two scores
    assert "a correlation needs at least 7" in page and "Document frequency by rank of response-micro" in page
    assert '"root":"../../../"' in page and '"datasets/d-response-micro_n1000_l000_s0"' in page
    sealed = context.storage.read_bytes(f"{index.get('report').path}/index.html").decode()
    assert sealed.replace('"root":"../../"', '"root":"../../../"') == page


def test_types_by_label_and_not_where_no_text_may_be_shown(tmp_path):
    context = context_of(tmp_path, FEW)
    build(context)
    add_peel(context, "response-meso")
    analyze.run(context)
    page = page_of(context)
    kept, dropped, largest = re.findall(r"<ul>(.*?)</ul>", page)
    assert kept.startswith("<li>tag &lt;39&gt; ") and dropped.startswith("<li>tag &lt;0&gt; ") and largest.startswith("<li>tag &lt;39&gt; ")
    assert kept.count("<li>") == 24 and "response-meso: 40 types" in page
    silent = context_of(tmp_path, FEW, samples="false")
    analyze.run(silent)
    assert "tag &lt;" not in page_of(silent)


def test_the_verdict_is_printed_and_sealed(tmp_path, capsys):
    context = context_of(tmp_path, FEW)
    build(context, {cell.name for cell in context.experiment.cells})
    analyze.run(context)
    told, sealed = capsys.readouterr().out.splitlines(), context.index.get("results").manifest["verdict"]
    assert [line.split(": ")[0] for line in sealed] == [
        "response-micro, 1,000 samples (exploratory)",
        "response-micro, 1,000 samples",
        "best of 1,000 samples",
    ]
    assert all(line in told for line in sealed)


def test_what_is_missing_of_the_plan_is_an_interim_look(tmp_path, capsys):
    context = context_of(tmp_path, FEW)
    build(context, SCORED)
    seal_plan(context, 0)
    analyze.run(context)
    told = capsys.readouterr().out
    assert "Nothing can be said: this is an interim look at 3 of 7 planned runs" in told
    assert "sealed before the first run was scored" in page_of(context)


def test_links_lead_from_the_page_to_the_dataset(tmp_path):
    context = context_of(tmp_path, FEW)
    build(context)
    analyze.run(context)
    for page in ("experiments/made-up/report/index.html", f"{context.index.get('report').path}/index.html"):
        path = tmp_path / "runs" / page
        data = json.loads(path.read_text("utf-8").split('id="data">')[1].split("</script>")[0])
        assert (path.parent / data["root"] / data["rows"][0][-1] / "manifest.json").resolve().is_file()


def test_datasets_alone(tmp_path, capsys):
    context = context_of(tmp_path, samples="false")
    build(context, metrics=False)
    analyze.run(context)
    told = capsys.readouterr().out
    assert "random_n1000_s0" in told and "response-micro_n1000_l100_s0" in told
    page = page_of(context)
    assert "nothing was trained" in page and "What diversity looks like" not in page
    assert "xxxx" not in page
    assert table_of(context.index.get("results"), "results.parquet")["value"].null_count == 43


def test_without_any_levels(tmp_path):
    context = context_of(tmp_path, ["random"])
    build(context, {"random_n1000_s0"})
    analyze.run(context)
    assert "random_n1000_s0" in page_of(context) and "No dataset has levels." in page_of(context)


def test_all_scores(tmp_path):
    context = context_of(tmp_path)
    build(context, {cell.name for cell in context.experiment.cells})
    analyze.run(context)
    page = page_of(context)
    assert "not trained" not in page and "Correlation of response metrics with the score" in page


def test_a_second_time_nothing_is_made_and_new_scores_make_a_new_report(tmp_path):
    context = context_of(tmp_path, FEW)
    index = build(context, SCORED)
    analyze.run(context)
    first, page = index.read()["results"], page_of(context)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs" / "results").rglob("*"))
    analyze.run(context)
    assert page_of(context) == page and index.read()["results"] == first
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs" / "results").rglob("*"))
    name = "response-micro_n1000_l066_s0"
    more = made_up.tables(context.experiment.cells, lambda cell: cell.name == name)[3].to_pylist()
    add_score(context, name, [row for row in more if row["cell"] == name])
    analyze.run(context)
    assert index.read()["results"] != first and page_of(context) != page


def test_scores_of_an_earlier_dataset_are_left_out(tmp_path):
    context = context_of(tmp_path, FEW)
    build(context, SCORED)
    rows = made_up.tables(context.experiment.cells)[3].to_pylist()
    name = "random_n1000_s0"
    add_score(context, name, [row for row in rows if row["cell"] == name], content="another")
    analyze.run(context)
    results = table_of(context.index.get("results"), "results.parquet").to_pylist()
    assert [row["value"] for row in results if row["cell"] == name] == [None]


def test_runs_of_other_settings_are_left_out_and_where_they_ran_makes_none(tmp_path, caplog):
    context = context_of(tmp_path, FEW)
    build(context)
    runs = (
        ("random_n1000_s0", SftConfig(), "cuda"),
        ("response-micro_n1000_l000_s0", SftConfig(precision="bf16"), "cpu"),
        ("response-micro_n1000_l050_s0", SftConfig(lr=0.5), "cpu"),
        ("response-micro_n1000_l100_s0", SftConfig(), "cpu"),
    )
    for name, sft, device in runs:
        model = context.storage.artifact("models", f"r-{name}").begin()
        identity = sft.resolved(device).identity(training_seed=0, device=device) | ({"kernels": "fused"} if device == "cuda" else {})
        model.seal({"model": context.experiment.model, "sft": json.loads(json.dumps(identity))})
        evaluators = [{"name": "generate"}] if name.endswith("l100_s0") else context.experiment.evaluation.identity()
        scores = context.storage.artifact("scores", f"s-{name}").begin()
        scores.write(pa.Table.from_pylist([{"run": f"r-{name}", "evaluator": "nll", "split": "in", "metric": "nll", "value": 1.0}]))
        context.index.add("scores", f"{name}_t0", scores.seal({"run": f"r-{name}", "evaluators": evaluators}))
    found = analyze._gather(context).results.to_pylist()
    assert {row["cell"] for row in found if row["run"]} == {"random_n1000_s0", "response-micro_n1000_l000_s0"}
    assert "l050_s0_t0: its scores are of a run with sft.lr=0.5, left out" in caplog.text
    assert "l100_s0_t0: its scores are of a run with other evaluation.evaluators, left out" in caplog.text


def test_cells_of_an_earlier_grid_and_broken_artifacts_are_left_out(tmp_path):
    context = context_of(tmp_path)
    build(context, SCORED)
    (tmp_path / "runs" / context.index.get("datasets", "random_n1000_s0").path / "manifest.json").unlink()
    smaller = context_of(tmp_path, ["response-micro", "random"])
    analyze.run(smaller)
    rows = table_of(smaller.index.get("results"), "results.parquet").to_pylist()
    assert {row["strategy"] for row in rows} == {"response-micro"}


def test_cells_csv_names_every_artifact(tmp_path):
    context = context_of(tmp_path, FEW)
    build(context, SCORED)
    analyze.run(context)
    rows = list(csv.DictReader(io.StringIO(context.storage.read_bytes("experiments/made-up/cells.csv").decode())))
    assert len(rows) == 8
    by_cell = {row["cell"]: row for row in rows}
    assert by_cell["random_n1000_s0"]["scores_path"] == "scores/s-random_n1000_s0-None"
    assert by_cell["random_n1000_s0"]["level"] == "" and by_cell["random_n1000_s0"]["training_seed"] == "0"
    assert by_cell["response-micro_n1000_l016_s0"]["scores_path"] == ""
    assert by_cell["response-micro_n1000_l016_s0"]["datasets_fingerprint"] == "d-response-micro_n1000_l016_s0"


def test_nothing_built_yet_says_what_to_run(tmp_path, capsys):
    context = context_of(tmp_path)
    with pytest.raises(ArtifactError, match=r"python -m ray_jobs.build_datasets"):
        analyze.run(context)
    assert main("analyze", [str(tmp_path / "config.yaml")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main("analyze", [str(tmp_path / "config.yaml"), "--dry-run"]) == 0
    assert "0 of 43 datasets and 0 scored runs are sealed" in capsys.readouterr().out


def test_it_runs_as_a_command_without_a_cluster(tmp_path):
    build(context_of(tmp_path, FEW), SCORED)
    command = [sys.executable, "-m", "ray_jobs.analyze", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "report: " in done.stdout and "connecting" not in done.stderr


def test_standard_error_over_training_seeds():
    from ray_jobs.report.page import cell_rows

    data = made_up.report_data(made_up.cells((1000,)), bootstraps=0)
    rows = data.results.to_pylist()
    again = [{**row, "training_seed": 1, "run": row["run"] + "b", "value": row["value"] + 0.2} for row in rows]
    twice = type(data)(**{**vars(data), "results": pa.Table.from_pylist(rows + again, schema=RESULTS_SCHEMA)})
    once, both = cell_rows(data)[0], cell_rows(twice)[0]
    assert both[9] == 2 and both[10] == pytest.approx(once[10] + 0.1)
    assert both[11] == pytest.approx(np.std([0, 0.2], ddof=1) / np.sqrt(2))


def test_the_tables_alone_give_the_same_verdict_and_the_same_page(tmp_path, capsys):
    context = context_of(tmp_path, FEW, samples="false")
    index = build(context, {cell.name for cell in context.experiment.cells})
    add_profile(context, "response-micro")
    seal_plan(context, 0)
    analyze.run(context)
    told = capsys.readouterr().out.partition("\n\nreport: ")[0]
    results, sealed = index.get("results"), index.get("report")
    drawn = context.storage.read_bytes(sealed.locate("index.html")).decode()
    copied, page = tmp_path / "copied", tmp_path / "new" / "page.html"
    assert redraw.main([results.uri, "--save", str(copied)]) == 0
    assert capsys.readouterr().out.rstrip() == told
    shutil.rmtree(tmp_path / "runs")  # neither datasets nor scores are needed
    assert redraw.main([str(copied), "--html", str(page)]) == 0
    assert capsys.readouterr().out.startswith(told)
    assert page.read_text("utf-8") == drawn
    assert redraw.main([str(copied), "--picture", str(tmp_path / "dose.svg")]) == 0
    assert "against measured coverage" in (tmp_path / "dose.svg").read_text("utf-8")


def test_a_folder_without_tables_is_told(tmp_path, capsys):
    assert redraw.main([str(tmp_path)]) == 1
    assert "has no about.json: give <storage>/results/<fingerprint>" in capsys.readouterr().err
    data = Path(__file__).resolve().parents[2] / "docs" / "data"
    for name, change, told in (
        ("prompts.parquet", Path.unlink, "has no prompts.parquet, one of the tables"),
        ("prompts.parquet", lambda path: path.write_text("x"), "prompts.parquet is no Parquet file"),
        ("about.json", lambda path: path.write_text("{"), "about.json is no JSON"),
        ("about.json", lambda path: path.write_text("{}"), "about.json lacks experiment, note"),
    ):
        broken = shutil.copytree(data, tmp_path / "broken", dirs_exist_ok=True)
        change(broken / name)
        assert redraw.main([str(broken)]) == 1
        assert told in (line := capsys.readouterr().err) and len(line.strip().splitlines()) == 1
    assert redraw.main(["results.parquet"]) == 1 and "the other tables lie beside it" in capsys.readouterr().err
    for words in (["runs/results/x"], ["--html", "x.html", "runs/results/x"], ["runs/results/x", "--save", "y.yaml"]):
        assert redraw.asked(words)
    for words in (["c.yaml"], ["c.yaml", "sft.lr=1"], ["--dry-run", "c.yaml"], ["--help"], []):
        assert not redraw.asked(words)
