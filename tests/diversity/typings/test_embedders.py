import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError
from diversity.typings.embedders import EMBEDDERS, EmbedderConfig, embed, embedder_class, load_embedder, static
from diversity.typings.embedders.transformer import batches

TEXTS = [
    "Describe the water cycle.",
    "def f(x):\n    return x  # two  spaces",
    "  leading, trailing  ",
    "\n\n\ttabs\n",
    "a ▁ mark ▁▁ and more",
    "日本語のテキスト 🙂",
    "<s>struck</s> and <unk>",
    "<0x0A> literal",
    "x",
    "word " * 3000,
]


@pytest.fixture(scope="module")
def embedder():
    pytest.importorskip("wordllama")
    return load_embedder(EmbedderConfig())


@pytest.fixture(scope="module")
def slow_way():
    """Return the package's own embedding, offline."""
    wordllama = pytest.importorskip("wordllama")
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


def test_static_vectors_are_those_of_the_package(embedder, slow_way):
    expected = slow_way.embed(TEXTS, norm=True)
    found = embedder(TEXTS)
    assert (expected * found).sum(1).min() > 0.999999
    assert np.abs(expected - found).max() < 2e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.one_of(st.sampled_from(" \nab▁.é"), st.characters(exclude_categories=["Cs"])), min_size=1, max_size=40), min_size=1)
)
def test_static_vectors_of_any_text_are_those_of_the_package(embedder, slow_way, texts):
    assert (slow_way.embed(texts, norm=True) * embedder(texts)).sum(1).min() > 0.99999


def test_a_row_depends_on_its_own_text_alone(embedder, monkeypatch):
    together = embedder(TEXTS)
    alone = np.concatenate([embedder([text]) for text in TEXTS])
    monkeypatch.setattr(static, "_CACHED_WORDS", 3)  # the cache is emptied at every call
    fresh = static.StaticEmbedder(EmbedderConfig())
    emptied = np.concatenate([fresh([text]) for text in TEXTS])
    assert (together == alone).all() and (together == emptied).all()
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_groups_change_nothing_for_static(embedder):
    assert (embed(TEXTS, EmbedderConfig(group=3)) == embedder(TEXTS)).all()
    assert embed([]).shape == (0, 256)


def test_files_other_than_the_recorded_ones_are_refused(monkeypatch):
    monkeypatch.setattr(static, "WEIGHTS", (static.WEIGHTS[0], "0" * 64))
    with pytest.raises(ConfigError, match="not the recorded file"):
        load_embedder(EmbedderConfig())


def test_config_errors():
    with pytest.raises(ValueError, match="did you mean 'static'"):
        EmbedderConfig(name="statik")
    with pytest.raises(ValueError, match="needs model"):
        EmbedderConfig(name="transformer")


def test_every_embedder_has_an_identity_without_its_weights(tiny_encoder):
    for name in EMBEDDERS:
        config = EmbedderConfig(name=name, model=str(tiny_encoder))
        assert json.loads(json.dumps(embedder_class(config).identity(config)))["name"] == name


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    """Return the folder of a random two-layer BERT with a word-piece tokenizer, as a hub has it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=300, max_position_embeddings=64, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_roberta(tmp_path_factory):
    """Return the folder of a random RoBERTa that takes 32 tokens: of its 34 positions the first two are for padding."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("roberta")
    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "hi", "you"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(RobertaConfig(vocab_size=6, max_position_embeddings=34, pad_token_id=1, **shape)).save_pretrained(folder)
    return folder


def test_long_texts_are_cut_where_the_positions_of_a_roberta_end(tiny_roberta, tmp_path):
    import shutil

    embedder = load_embedder(EmbedderConfig(name="transformer", model=str(tiny_roberta)))
    found = embedder(["you " + "hi " * n for n in (28, 29, 30, 99)])
    assert (found[1] == found[2]).all() and np.allclose(found[2], found[3], atol=1e-6) and np.abs(found[0] - found[1]).max() > 1e-3
    shutil.copytree(tiny_roberta, tmp_path / "short")
    settings = tmp_path / "short" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 9}))
    short = load_embedder(EmbedderConfig(name="transformer", model=str(tmp_path / "short")))
    assert np.allclose(short(["hi you " * 9]), embedder(["hi you hi you hi you hi"]), atol=1e-6)
    (tmp_path / "short" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 11}))
    longer = load_embedder(EmbedderConfig(name="transformer", model=str(tmp_path / "short")))
    assert np.allclose(longer(["hi you " * 9]), embedder(["hi you hi you hi you hi you hi"]), atol=1e-6)


def test_the_identity_of_a_transformer_follows_what_changes_vectors(tiny_roberta):
    config = EmbedderConfig(name="transformer", model=str(tiny_roberta))
    for change in ({"max_tokens": 3}, {"group": 7}):
        other = config.model_copy(update=change)
        assert embedder_class(config).identity(config) != embedder_class(other).identity(other)
    static_ones = [EmbedderConfig(group=group) for group in (3, 7)]
    assert embedder_class(static_ones[0]).identity(static_ones[0]) == embedder_class(static_ones[1]).identity(static_ones[1])


def pooled_by_hand(hidden, mode):
    """Return the pooled vector of one text's (length, d) hidden states, not yet of unit length."""
    weights = np.arange(1, len(hidden) + 1)[:, None]
    ways = {
        "mean": hidden.mean(0),
        "cls": hidden[0],
        "max": hidden.max(0),
        "lasttoken": hidden[-1],
        "weightedmean": (hidden * weights).sum(0) / weights.sum(),
    }
    return ways[mode]


def with_pooling(folder, tmp_path, mode, old=False):
    """Return a copy of a model's folder with a sentence-transformers pooling step."""
    import shutil

    copy = tmp_path / f"{mode}-{old}"
    shutil.copytree(folder, copy)
    (copy / "1_Pooling").mkdir()
    names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "weightedmean": "weightedmean_tokens"}
    new = {"embedding_dimension": 32, "pooling_mode": mode}
    before = {f"pooling_mode_{name}": kind == mode for kind, name in names.items()}
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **before} if old else new))
    steps = [{"path": path, "type": f"x.{kind}"} for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"), ("", "Normalize"))]
    (copy / "modules.json").write_text(json.dumps(steps))
    return copy


@pytest.mark.parametrize(
    ("mode", "old"), [("mean", True), ("mean", False), ("cls", True), ("max", True), ("lasttoken", False), ("weightedmean", True)]
)
def test_transformer_equals_one_text_at_a_time(tiny_encoder, tmp_path, mode, old):
    import torch
    from transformers import AutoModel, AutoTokenizer

    embedder = load_embedder(EmbedderConfig(name="transformer", model=str(with_pooling(tiny_encoder, tmp_path, mode, old))))
    found = embedder(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(tiny_encoder).eval(), AutoTokenizer.from_pretrained(tiny_encoder)
    for text, vector in zip(TEXTS, found):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=64)["input_ids"]])
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0].numpy()
        expected = pooled_by_hand(hidden, mode)
        assert np.abs(expected / np.linalg.norm(expected) - vector).max() < 1e-5


@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
def test_int8_is_near_and_made_once(tiny_encoder, tmp_path, monkeypatch, mode):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setenv("SFT_DIVERSITY_CACHE", str(tmp_path / "cache"))
    folder = str(with_pooling(tiny_encoder, tmp_path, mode))
    exact = load_embedder(EmbedderConfig(name="transformer", model=folder, precision="fp32"))(TEXTS)
    config = EmbedderConfig(name="transformer", model=folder, precision="int8")
    found = load_embedder(config)(TEXTS)
    assert (found * exact).sum(1).mean() > 0.98 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "onnx").glob("*.onnx")}
    import onnx

    assert [{"MatMulInteger", "DynamicQuantizeLinear"} <= {node.op_type for node in onnx.load(path).graph.node} for path in files] == [True]
    again = load_embedder(config)(TEXTS)
    assert (again == found).all() and {path: path.stat().st_mtime_ns for path in files} == files
    identity = embedder_class(config).identity
    assert identity(config) != identity(config.model_copy(update={"precision": "auto"}))


def test_a_graph_with_other_vectors_is_refused(tmp_path):
    from diversity.typings.embedders.onnx_int8 import check

    vectors = np.random.default_rng(0).normal(size=(3, 4))
    check(tmp_path, vectors * (1 + 1e-5), vectors)
    for wrong in (vectors[::-1], vectors * np.nan):
        with pytest.raises(ConfigError, match="gives other vectors"):
            check(tmp_path, wrong, vectors)


def test_a_model_in_a_folder_of_its_own(tiny_encoder, tmp_path):
    import shutil

    shutil.copytree(tiny_encoder, tmp_path / "0_Transformer")
    steps = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    config = EmbedderConfig(name="transformer", model=str(tmp_path))
    plain = EmbedderConfig(name="transformer", model=str(tiny_encoder), max_tokens=9)
    assert np.allclose(load_embedder(config)(TEXTS), load_embedder(plain)(TEXTS), atol=1e-5)
    assert "0_Transformer/config.json" in embedder_class(config).identity(config)["files"]


def test_unknown_poolings_are_refused(tiny_encoder, tmp_path):
    folder = with_pooling(tiny_encoder, tmp_path, "mean")
    for modes in ("attention", ["mean", "cls"]):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": modes}))
        with pytest.raises(ConfigError, match="known is one of mean, cls"):
            load_embedder(EmbedderConfig(name="transformer", model=str(folder)))
    with pytest.raises(ValueError, match="static has no precision"):
        EmbedderConfig(precision="int8")


def test_unknown_steps_of_a_model_are_refused(tiny_encoder):
    modules = tiny_encoder / "modules.json"
    modules.write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ConfigError, match="'Dense'"):
        load_embedder(EmbedderConfig(name="transformer", model=str(tiny_encoder)))
    modules.unlink()


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    found = list(batches(lengths, budget))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
