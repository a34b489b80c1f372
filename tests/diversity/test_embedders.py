import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError
from diversity.embedders import EMBEDDERS, EmbedderConfig, embed, embedder_class, load_embedder, static
from diversity.embedders.transformer import batches

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
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


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


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_transformer_equals_one_text_at_a_time(tiny_encoder, mode):
    import torch
    from transformers import AutoModel, AutoTokenizer

    (tiny_encoder / "1_Pooling").mkdir(exist_ok=True)
    pools = {"pooling_mode_cls_token": mode == "cls", "pooling_mode_mean_tokens": mode == "mean", "word_embedding_dimension": 32}
    (tiny_encoder / "1_Pooling" / "config.json").write_text(json.dumps(pools))
    embedder = load_embedder(EmbedderConfig(name="transformer", model=str(tiny_encoder)))
    found = embedder(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(tiny_encoder).eval(), AutoTokenizer.from_pretrained(tiny_encoder)
    for text, vector in zip(TEXTS, found):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=64)["input_ids"]])
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden[0] if mode == "cls" else hidden.mean(0), dim=0).numpy()
        assert np.abs(expected - vector).max() < 1e-5


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
