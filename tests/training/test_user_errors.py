"""What users bring: each fault is one line that says what to mend, before any work where that can be known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diversity.config import ConfigError, UserError
from tests.training.ranks import SFT, alone, samples
from training.config import LoraConfig, SftConfig
from training.data import Job, prepare_data, read_samples
from training.engine import load_model, shape_of, with_adapters
from training.model_source import ModelError, resolve_model
from training.sft import main, put

QUESTION = {"role": "user", "content": "Hi"}


def table(messages: list[dict[str, Any]], name: str | None = "a" * 32) -> pa.Table:
    return pa.Table.from_pylist([{**({"sample_id": name} if name else {}), "messages": messages}])


def prepared(folder: Path, rows: pa.Table) -> Any:
    return prepare_data(Job(folder, rows, SftConfig(**SFT), 0, "cpu"), 1)


def test_samples_that_cannot_be_learnt_are_counted_and_one_is_named(tiny_folder: Path) -> None:
    unanswered = pa.concat_tables([samples(3).select(["sample_id", "messages"]), table([QUESTION])])
    with pytest.raises(UserError, match=r"1 of 4 samples .* sample a{32}: .* nothing to learn"):
        prepared(tiny_folder, unanswered)
    with pytest.raises(UserError, match=r"turn 1 \(assistant\) has neither content nor a tool call"):
        prepared(tiny_folder, table([QUESTION, {"role": "assistant", "content": None}]))


def test_sample_ids_of_ones_own_are_refused_and_can_be_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "Hello there."}]
    with pytest.raises(UserError, match="leave the column sample_id out"):
        prepared(tiny_folder, table(messages, "row-17"))
    pq.write_table(table(messages, None), tmp_path / "mine.parquet")
    read = read_samples(tmp_path / "mine.parquet")
    assert len(read["sample_id"][0].as_py()) == 32 and len(prepared(tiny_folder, read).encoded) == 1


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b"PAR1 and then nothing"), "can't be read as parquet"),
        (lambda path: path.write_bytes(b""), "can't be read as parquet"),
        (lambda path: pq.write_table(pa.table({"text": ["a"]}), path), "no column messages"),
        (lambda path: pq.write_table(pa.table({"messages": ["a"]}), path), "holds string, not lists of turns"),
        (lambda path: pq.write_table(samples(1).slice(0, 0), path), "holds no sample"),
        (lambda path: None, "neither a parquet file nor a folder"),
    ],
)
def test_a_dataset_that_is_none(write: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "data.parquet")
    with pytest.raises(UserError, match=said):
        read_samples(tmp_path / "data.parquet")


TURNS = [QUESTION, {"role": "assistant", "content": "Hello."}]
NULL_TURN = pa.array([[None, TURNS[1]]], pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sample_id": [1], "messages": [TURNS]}, "sample_id '1' is not 32 hexadecimal digits: leave the column sample_id out"),
        ({"sample_id": [["a"]], "messages": [TURNS]}, "the column sample_id holds list.*, not text: leave it out"),
        ({"messages": [TURNS], "tools": ["look"]}, "the tools of a sample are no JSON text: 'look'"),
        ({"messages": [TURNS], "tools": [""]}, "the tools of a sample are no JSON text: ''"),
        ({"messages": [TURNS], "tools": [["look"]]}, "the column tools holds list.*, not text"),
        ({"messages": [[{**turn, "content": [turn["content"]]} for turn in TURNS]]}, "content of its messages holds list.*, not text"),
        ({"messages": [[{**turn, "tool_calls": "[look"} for turn in TURNS]]}, "a conversation can't be read: Expecting value"),
        ({"messages": [[{**turn, "weight": "much"} for turn in TURNS]]}, "a conversation can't be read: could not convert string"),
        ({"messages": NULL_TURN}, "1 turns are null"),
    ],
)
def test_columns_of_ones_own(columns: dict[str, Any], said: str, tiny_folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match=said) as told:
        prepared(tiny_folder, read_samples(tmp_path / "mine.parquet"))
    assert "\n" not in str(told.value)


def test_text_is_text_however_arrow_stores_it(tmp_path: Path) -> None:
    table = pa.table({"messages": [TURNS, TURNS]})
    roles = pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.large_string())])
    flat = table["messages"].combine_chunks().flatten()
    turns = pa.StructArray.from_arrays(
        [flat.field("role").dictionary_encode(), flat.field("content").cast(pa.large_string())], fields=list(roles)
    )
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 2, 4], turns)}), tmp_path / "coded.parquet")
    pq.write_table(table, tmp_path / "plain.parquet")
    coded, plain = (read_samples(tmp_path / name)["messages"].to_pylist() for name in ("coded.parquet", "plain.parquet"))
    assert coded == plain


def test_samples_that_a_model_has_no_positions_for(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPTJConfig, OPTConfig

    from training import sft

    alone()
    monkeypatch.setattr(sft, "_one_step", lambda *given: pytest.fail("a step was taken"))
    long = SftConfig(**{**SFT, "max_length": 256})
    with pytest.raises(UserError, match=r"longest sample has \d+ tokens, .* positions for 64: set sft.max_length=64"):
        sft.fine_tune(Job(gpt2_folder, samples(24, longest=60), long, 0, "cpu"))
    small = {"vocab_size": 99, "max_position_embeddings": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    for number, config in enumerate((OPTConfig(**small, word_embed_proj_dim=16), GPTJConfig(**small, rotary_dim=4))):
        config.save_pretrained(tmp_path / str(number))
        assert shape_of(tmp_path / str(number), long).positions == 48


def test_settings_of_the_command_line() -> None:
    values: dict[str, Any] = {}
    for setting in ("sft.lr=1e-4", "zero.stage=2", "budget={epochs: 1}"):
        put(values, setting)
    assert values == {"lr": "1e-4", "zero": {"stage": 2}, "budget": {"epochs": 1}}
    for settings, said in (
        (["zero=3", "zero.stage=2"], "zero is already 3"),
        (["lr"], "key=value"),
        (["budget={epochs"], "no YAML value"),
    ):
        with pytest.raises(ConfigError, match=said):
            values = {}
            for setting in settings:
                put(values, setting)


def test_an_output_path_that_is_a_file(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        assert main([str(tmp_path), "--out", str(out), "--model", str(tiny_folder)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("sft: --out") and "a file is there" in said and said.count("\n") == 1


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_model_folders_that_cannot_be_trained(copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for content, said in ((whole[:-100], "in place of"), (b"", "no safetensors file"), (bytes(4096), "no safetensors file")):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=said):
            resolve_model(str(copy), tmp_path)
    weights.write_bytes(whole)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors, which"):
        resolve_model(str(copy), tmp_path)
    (copy / "model.safetensors.index.json").unlink()
    for method in ("bitsandbytes", "gptq"):
        change(copy / "config.json", quantization_config={"quant_method": method})
        with pytest.raises(ModelError, match=rf"quantized \({method}\)"):
            resolve_model(str(copy), tmp_path)
        assert resolve_model(str(copy), tmp_path, tokenizer_only=True) == copy
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON object"):
        resolve_model(str(copy), tmp_path)


def test_weights_that_are_missing_or_unknown_are_named(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    less = {key: tensor for key, tensor in held.items() if key != name}
    for tensors, said in ((less, f"lacks 1 of the model's weights: {name}"), ({**held, "model.extra": held[name].clone()}, "model.extra")):
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=said):
            load_model(copy, SftConfig(), "fp32", seed=0)


def test_a_vocabulary_smaller_than_the_tokenizers(tiny_folder: Path) -> None:
    data = prepared(tiny_folder, samples(4))
    data.refuse_ids_from(49152)
    with pytest.raises(UserError, match="don't belong together"):
        data.refuse_ids_from(100)


def test_lora_targets_that_are_not_there_or_are_shared(tiny_folder: Path, tiny_model: Any) -> None:
    for targets, said in (
        (["q_proj", "k_prj"], "no layer 'k_prj': did you mean"),
        (["lm_head"], "lm_head shares its weight"),
        (["embed_tokens"], "embed_tokens shares its weight"),
    ):
        with pytest.raises(UserError, match=said):
            shape_of(tiny_folder, SftConfig(lora={"targets": targets}))


def test_a_merge_that_changes_the_model_is_an_error(tiny_folder: Path, tiny_model: Any) -> None:
    """Adapters put on a shared weight by hand: what `with_adapters` refuses, the export would find."""
    import copy as copying

    import peft
    import torch

    from training.export import ExportError, _merged

    torch.manual_seed(0)
    for target, fails in (("q_proj", False), ("lm_head", True)):
        adapted = peft.get_peft_model(copying.deepcopy(tiny_model), peft.LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        if fails:
            with pytest.raises(ExportError, match="merged weights don't do what the adapters did"):
                _merged(adapted.eval())
        else:
            _merged(adapted.eval())


@pytest.mark.parametrize("damage", ["empty", "zeros", "cut"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(
    damage: str, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from training.checkpoint import CheckpointFolder
    from training.sft import fine_tune

    alone()
    folder = CheckpointFolder(tmp_path, "run")
    job = Job(tiny_folder, samples(24), SftConfig(**SFT), 0, "cpu")
    whole = fine_tune(job).rows["loss"].to_pylist()
    fine_tune(job, checkpoint=folder.save)
    assert [path.name for path in folder.whole()] == ["step-00000002", "step-00000004"]
    for path in (tmp_path / "step-00000004").rglob("*.pt"):
        size = path.stat().st_size
        path.write_bytes({"empty": b"", "zeros": bytes(size), "cut": path.read_bytes()[: size // 2]}[damage])
    begun: list[int] = []

    def resume(engine: Any) -> Any:
        done, rows = folder.resume(engine)
        begun.append(done)
        return done, rows

    again = fine_tune(job, resume=resume)
    assert begun == [2] and again.rows["loss"].to_pylist() == pytest.approx(whole, abs=1e-6)
    assert "step-00000004 is broken" in caplog.text and "going on from the one before" in caplog.text


def test_a_full_disk_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the same errors come from below."""
    import subprocess
    import sys

    script = f"""
import resource, signal, sys
from pathlib import Path
import torch
from diversity.config import UserError
from training.export import lasting, write_model
from training.config import SftConfig
from transformers import AutoModelForCausalLM
folder = Path({str(tiny_folder)!r})
model = AutoModelForCausalLM.from_pretrained(folder)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_model(folder, {{name: tensor.detach() for name, tensor in lasting(model)}}, Path({str(tmp_path / "hf")!r}), SftConfig())
except UserError as error:
    print("said:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "said: the trained model can't be written to" in done.stdout, done.stderr[-2000:]


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(tiny_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk. The run ends with one line, and goes on where the last whole checkpoint is."""
    import resource

    from training.checkpoint import CheckpointError, CheckpointFolder
    from training.sft import fine_tune

    alone()
    folder = CheckpointFolder(tmp_path, "run")
    job = Job(tiny_folder, samples(24), SftConfig(**SFT), 0, "cpu")
    free = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(engine: Any, step: int, rows: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if step == 4 else free[0], free[1]))
        folder.save(engine, step, rows)

    try:
        with pytest.raises(CheckpointError, match=r"^the checkpoint of step 4 can't be written to .*") as told:
            fine_tune(job, checkpoint=save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
    assert "\n" not in str(told.value) and [path.name for path in folder.whole()] == ["step-00000002"]
    begun: list[int] = []

    def resume(engine: Any) -> Any:
        done, rows = folder.resume(engine)
        begun.append(done)
        return done, rows

    again = fine_tune(job, resume=resume, checkpoint=folder.save)
    assert begun == [2] and again.rows["loss"].to_pylist() == pytest.approx(fine_tune(job).rows["loss"].to_pylist(), abs=1e-6)
    assert [path.name for path in folder.whole()] == ["step-00000002", "step-00000004"]


def test_what_offloading_needs_is_looked_for_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from training import engine

    offloading = SftConfig(zero={"stage": 2, "offload_optimizer": True})  # type: ignore[arg-type]
    engine.check_offload(offloading, "cpu")
    engine.check_offload(SftConfig(zero={"stage": 2}), "cuda")  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setattr(engine, "_has_ninja", lambda: False)
        with pytest.raises(UserError, match=r"compiles AdamW for the host, and g\+\+ and ninja can't be found on this node"):
            engine.check_offload(offloading, "cuda")
    for name in ("g++", "ninja"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="offloading needs pinned memory, which this node refuses"):
            engine.check_offload(offloading, "cuda")
    torch.set_num_threads(threads)
    assert "AdamW runs on the host with 1 threads a rank" in caplog.text


def test_a_model_that_could_not_be_exported_is_not_trained(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that the export forgets, and weights that another configuration has: both are found before a step is taken."""
    import torch
    from transformers import AutoModelForCausalLM

    from training import export, sft

    alone()
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    export.dry_export(model, tiny_folder, SftConfig(**SFT))
    export.dry_export(
        with_adapters(model, LoraConfig(targets=["q_proj"]), seed=0), tiny_folder, SftConfig(**SFT, lora={"targets": ["q_proj"]})
    )
    saved = export.lasting
    monkeypatch.setattr(sft, "_one_step", lambda *given: pytest.fail("a step was taken"))
    monkeypatch.setattr(export, "lasting", lambda one: [pair for pair in saved(one) if "layers.1.mlp" not in pair[0] or pair[1].is_meta])
    with pytest.raises(export.ExportError, match=r"^the trained model has no weights for model.layers.1.mlp"):
        sft.fine_tune(Job(tiny_folder, samples(24), SftConfig(**SFT), 0, "cpu"))
    monkeypatch.setattr(export, "lasting", lambda one: [*saved(one), ("model.more", torch.zeros(3))])
    with pytest.raises(export.ExportError, match=r"has weights that its files don't, model.more"):
        export.dry_export(AutoModelForCausalLM.from_pretrained(tiny_folder), tiny_folder, SftConfig(**SFT))
    shutil.copytree(tiny_folder, tmp_path / "other")
    values = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**values, "intermediate_size": 96}))
    monkeypatch.undo()
    with pytest.raises(export.ExportError, match=r"could be trained and then not be exported \(RuntimeError: .*size mismatch"):
        export.dry_export(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "other", SftConfig(**SFT))


def test_adapters_on_plain_layers_stay_allowed(tiny_model: Any) -> None:
    import copy as copying

    adapted = with_adapters(copying.deepcopy(tiny_model), LoraConfig(targets=["q_proj", "down_proj"]), seed=0)
    assert any("lora_A" in name for name, _ in adapted.named_parameters())
