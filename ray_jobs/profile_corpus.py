"""Give every sample its types: `python -m ray_jobs.profile_corpus CONFIG.yaml [key=value …] [--dry-run]`.

One pass of Ray Data over spans of the corpus tokenises, embeds and tags whatever isn't sealed yet. Then each typing is made by tasks
of its own: frequencies and bands, normalised tags, topics. Every typing, and the embeddings of each side, is an artifact of its own,
so that a run that was killed, or a further typing, costs only what is missing. How rows are cut into spans changes no content.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from diversity.artifact import Artifact, fingerprint, package_versions
from diversity.cell import typing_parts
from diversity.typings import encoders
from diversity.typings.embedders import embedder_class
from diversity.typings.taggers import tagger_class
from diversity.typings.tags import RECIPE as TAGS_RECIPE
from diversity.typings.tokens import FLOOR, WORD
from diversity.typings.topics import RECIPE, assignment_blocks, check_topics, estimate_seconds
from diversity.typings.words import other_scripts
from ray_jobs import heldout
from ray_jobs.job import telemetry
from ray_jobs.job.device import device_kind, faiss_device, gpus
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, main, once
from ray_jobs.job.waiting import finished
from ray_jobs.regenerate import maker
from ray_jobs.tasks import length_window, profiling, scoring, vllm
from ray_jobs.tasks.corpus_rows import CorpusRows
from ray_jobs.tasks.profiling import Embed, SpanWorker, Tag, Tokenise, Work
from training.model_source import resolve_model, tokenizer_digest

logger = logging.getLogger(__name__)

VERSION = 1
SCRIPTS_ROWS = 2000
SPAN_ROWS = 16_384
SPANS_A_TASK = 16


def corpus_artifact(context: Context) -> Artifact:
    """Return the corpus that is profiled: the experiment's own less what scores too low, or the one that a control derived from it."""
    return context.corpus or scoring.good_corpus(context, heldout.corpus_artifact(context))


def corpus_maker(context: Context) -> str:
    """Return the stage that makes that corpus."""
    return _maker(context) if corpus_artifact(context) == heldout.corpus_artifact(context) else "profile_corpus"


def _maker(context: Context) -> str:
    return "heldout" if context.experiment.evaluation.heldout else maker(context)


@once
def chosen_from(context: Context, control: str) -> Context:
    """Return what the cells of a control are chosen from: the experiment itself, or the experiment over a derived corpus."""
    if control != length_window.NAME or context.corpus is not None:
        return context
    return length_window.over_window(context, corpus_artifact(context), profile_artifact(context, "response-micro"))


@once
def embedding_artifact(context: Context, side: str) -> Artifact:
    """Return the artifact of the embeddings of a side: a row for each sample, in corpus order."""
    config = context.experiment.profile.embedder
    settings = {
        **config.model_dump(mode="json", exclude={"model", "precision"}),
        "side": side,
        "identity": embedder_class(config).identity(config, device_kind(context)),
    }
    return _artifact(context, "profile/embeddings", settings, ["numpy", "tokenizers"], [corpus_artifact(context).fingerprint])


@once
def profile_artifact(context: Context, typing: str) -> Artifact:
    """Return the artifact of a typing: the types of each sample, and a table of the types."""
    side, granularity, unit = typing_parts(typing)
    profile, corpus = context.experiment.profile, corpus_artifact(context).fingerprint
    settings: dict[str, Any] = {"typing": typing}
    if granularity == "micro":
        settings["band"] = profile.band.model_dump(mode="json") | ({"floor": FLOOR} if profile.band.scaled else {})
        tokenizers = context.experiment.tokenizers
        if unit not in tokenizers:
            return _artifact(context, "profile", settings, ["regex"] if unit == WORD else ["tiktoken"], [corpus])
        folder = resolve_model(tokenizers[unit], cache_folder(), tokenizer_only=True)
        settings["encoder"] = encoders.VERSION
        return _artifact(context, "profile", settings, ["tokenizers"], [corpus, tokenizer_digest(folder)])
    if granularity == "macro":
        settings["topics"] = {**profile.topics.model_dump(mode="json", exclude={"min_topics"}), "recipe": RECIPE}
        if faiss_device(context) == "cuda":
            settings["device"] = "cuda"  # k-means adds up in another order there
        packages = ["numpy", "numba", "scipy", "fast-hdbscan", _faiss()]
        return _artifact(context, "profile", settings, packages, [corpus, embedding_artifact(context, side).fingerprint])
    settings["tagger"] = {**profile.tagger.settings(), "recipe": TAGS_RECIPE}
    settings["identity"] = tagger_class(profile.tagger).identity(profile.tagger)
    settings["embedder"] = embedder_class(profile.embedder).identity(profile.embedder)
    return _artifact(context, "profile", settings, ["simplemma", "numpy", "scipy", _faiss()], [corpus])


def plan(context: Context) -> Iterator[str]:
    """Yield what is sealed, what would be made, and about how long topics take."""
    corpus = corpus_artifact(context)
    rows, whole = len(CorpusRows.of(corpus)) if corpus.sealed else None, heldout.corpus_artifact(context)
    if rows is not None:
        yield f"types {rows:,} samples"
    elif whole.sealed:
        yield f"scores {len(CorpusRows.of(whole)):,} samples, and types those that profile.scorer.min_score leaves"
    else:
        yield f"types a corpus that is not sealed yet: {context.command(_maker(context))}"
    yield from _planned(context, rows)
    if length_window.NAME in context.experiment.grid.controls:
        window = chosen_from(context, length_window.NAME)
        derived = corpus_artifact(window)
        yield f"{length_window.NAME}: {derived.path}, {_standing(derived)}"
        yield from _planned(window, len(CorpusRows.of(derived)) if derived.sealed else None)


def _planned(context: Context, rows: int | None) -> Iterator[str]:
    """Yield what is sealed of the artifacts over one corpus, whose samples are counted where it is sealed."""
    for name, artifact in _artifacts(context).items():
        estimate = ""
        if rows is not None and name.endswith("-macro"):
            estimate = f", about {estimate_seconds(rows, context.experiment.profile.topics):.0f} s on one core"
        if rows is not None and name.endswith("-meso") and context.experiment.profile.tagger.name == "llm":
            estimate = f", up to {rows:,} requests to {context.experiment.profile.tagger.model}, less what is answered already"
        yield f"{name}{context.suffix}: {artifact.path}, {_standing(artifact)}{estimate}"


def _standing(artifact: Artifact) -> str:
    return "sealed already" if artifact.sealed else "to be made"


def _scored(context: Context) -> Artifact:
    """Return the corpus of the index without the samples that its scorer leaves out, made where it is not there yet."""
    whole = context.require(heldout.corpus_artifact(context), _maker(context))
    corpus = scoring.derive_good(context, whole)
    if corpus != whole:
        context.index.add("corpus", None, corpus)
    return corpus


def run(context: Context) -> None:
    """Seal the embeddings of both sides and every typing of the experiment, over every corpus that its cells are chosen from."""
    corpus = context.corpus or _scored(context)
    _profile(context, corpus)
    if length_window.NAME in context.experiment.grid.controls:
        window = chosen_from(context, length_window.NAME)
        derived = corpus_artifact(window)
        length_window.derive(context, corpus, profile_artifact(context, "response-micro"), derived)
        facts = derived.manifest
        logger.info("%s: %d samples with responses of %d to %d tokens", length_window.NAME, facts["samples"], *facts["window"])
        context.index.add("derived", length_window.NAME, derived)
        _profile(window, derived)


def _score(context: Context, corpus: Artifact) -> None:
    """Seal every sample's score where the experiment asks for one."""
    scores = scoring.score_artifact(context, corpus)
    if scores is None:
        return
    if not scores.sealed:
        context.connect()
        scoring.make_scores(context, corpus, scores, 1 if gpus(context) else 0)
    context.index.add("scored", f"samples{context.suffix}", scores)


def _tell_english(rows: CorpusRows) -> None:
    """Say that keyphrases are English, and how much of the corpus's beginning (ids are hashes: a random part) is in other scripts."""
    head = rows.read(0, min(len(rows), SCRIPTS_ROWS), ["instruction", "response"])
    share = other_scripts(text for side in head.columns for text in side.to_pylist())
    told = f"; {share:.0%} of the texts are mostly in other scripts, whose tags mean little: profile.tagger.name=llm" if share else ""
    logger.log(logging.WARNING if share > 0.05 else logging.INFO, "profile_corpus: the keyphrase tagger is for English%s", told)


def _profile(context: Context, corpus: Artifact) -> None:
    """Seal what isn't sealed yet over one corpus, and enter it into the index."""
    artifacts = _artifacts(context)
    missing = {name: artifact.begin() for name, artifact in artifacts.items() if not artifact.sealed}
    logger.info("profile_corpus: %d artifacts, %d sealed already", len(artifacts), len(artifacts) - len(missing))
    telemetry.add("seals_reused", len(artifacts) - len(missing), stage="profile_corpus")
    if missing:
        context.connect()
        rows = CorpusRows.of(corpus)
        if any(name.endswith("-meso") for name in missing) and context.experiment.profile.tagger.name == "keyphrase":
            _tell_english(rows)
        _make(context, rows, missing)
        telemetry.add("samples", len(rows) * len(missing), stage="profile_corpus")
    for typing in context.experiment.typings:
        _check_topics(context, typing, artifacts[typing])
    _score(context, corpus)
    suffix = context.suffix
    context.index.add_many("embeddings", {f"{side}{suffix}": artifacts[f"{side} embeddings"] for side in context.experiment.embedded_sides})
    context.index.add_many("profile", {f"{typing}{suffix}": artifacts[typing] for typing in context.experiment.typings})


def _make(context: Context, rows: CorpusRows, missing: Mapping[str, Artifact]) -> None:
    """Do the row-wise work in one pass, then the rest in tasks; topics start first, since they take longest."""
    profile, tokenizers = context.experiment.profile, context.experiment.tokenizers
    warm = ray.remote(profiling.warm_up).remote() if any(name.endswith("-macro") for name in missing) else None
    works = _works(context, missing)
    spans = rows.spans(_span_rows(context, len(rows)))
    _pass(context, rows, spans, list(works.values()))
    sealing = _sealing(context)
    for work in works.values():
        if isinstance(work, Embed):
            profiling.seal_embeddings(work, sealing, len(rows))
    waiting = []
    for name, artifact in missing.items():
        if name.endswith("-macro"):
            waiting.append(_start_topics(context, artifact, name, rows, warm))
    for name, work in works.items():
        if isinstance(work, Tag):
            waiting.append(ray.remote(profiling.make_tags).options(name=name).remote(work, name, profile.embedder, sealing))
        elif isinstance(work, Tokenise):
            lookup = ray.remote(profiling.count_types).remote(work, len(rows), profile.band, tokenizers)
            typed = _type_rows(work, rows, spans, lookup)
            waiting.append(ray.remote(profiling.seal_micro).options(name=name).remote(work, sealing, *typed))
    finished("typings sealed", waiting, len(waiting))


def _pass(context: Context, rows: CorpusRows, spans: Sequence[tuple[int, int]], works: Sequence[Work]) -> None:
    """Do all row-wise work on every span: what needs a GPU, and what asks a language model, in passes of their own."""
    gpu = gpus(context)
    asking = [work for work in works if isinstance(work, Tag) and work.config.name == "llm"]
    on_gpu = [work for work in works if gpu and _wants_gpu(work)]
    on_cpu = [work for work in works if work not in on_gpu and work not in asking]
    if local := [work for work in asking if work.config.vllm is not None]:
        vllm.answer(rows, spans, local, gpu)
    # One worker asks: so that its rate and its concurrency are those of the whole job.
    for group, workers, num_gpus in ((on_gpu, gpu, 1), (on_cpu, context.workers, 0), (asking, 1, 0)):
        if group:
            _one_pass(context, rows, spans, group, min(workers, len(spans)), num_gpus)


def _one_pass(
    context: Context, rows: CorpusRows, spans: Sequence[tuple[int, int]], works: Sequence[Work], workers: int, num_gpus: int
) -> None:
    logger.info("profile_corpus: %d samples in %d spans, %d workers", len(rows), len(spans), workers)
    # A block for each span, made here: tasks that cut them, or look at tables, would wait for cores that the actors hold.
    numbers = ray.data.from_items([{"span": span} for span in range(len(spans))], override_num_blocks=len(spans))
    done = numbers.map_batches(
        SpanWorker,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(rows, spans, list(works), context.experiment.tokenizers),
        num_gpus=num_gpus,
    )
    samples = 0
    for number, row in enumerate(done.iter_rows(), start=1):
        if row["error"] is not None:
            raise pickle.loads(row["error"])
        samples += row["rows"]
        logger.info("profile_corpus: %d of %d spans (%d of %d samples)", number, len(spans), samples, len(rows))


def _type_rows(work: Tokenise, rows: CorpusRows, spans: Sequence[tuple[int, int]], lookup: Any) -> list[Any]:
    """Start the tasks that turn counted tokens into types, and return them."""
    numbered = list(enumerate(spans))
    pieces = [numbered[i : i + SPANS_A_TASK] for i in range(0, len(numbered), SPANS_A_TASK)]
    return [ray.remote(profiling.type_spans).remote(work, rows, piece, lookup) for piece in pieces]


def _start_topics(context: Context, artifact: Artifact, typing: str, rows: CorpusRows, warm: Any) -> Any:
    """Start what makes and seals a macro typing, and return it: one task, or k-means trained once and assigned in parallel."""
    config, sealing = context.experiment.profile.topics, _sealing(context)
    embeddings = embedding_artifact(context, typing_parts(typing)[0])
    logger.info("%s: %d samples, topics in about %.0f s of one core", typing, len(rows), estimate_seconds(len(rows), config))
    if config.by_density(len(rows)):
        return ray.remote(_topics).options(name=typing).remote(warm, artifact, typing, rows, embeddings, config, sealing)
    device = faiss_device(context)
    gpu = int(device == "cuda")
    centroids = ray.remote(profiling.train_topics).options(num_gpus=gpu).remote(embeddings, config, device)
    assign, blocks = ray.remote(profiling.assign_topics).options(num_gpus=gpu), assignment_blocks(len(rows))
    step = math.ceil(len(blocks) / context.workers)
    assigned = [assign.remote(rows, embeddings, blocks[i : i + step], centroids, device) for i in range(0, len(blocks), step)]
    return ray.remote(profiling.seal_topics).options(name=typing).remote(artifact, typing, rows, config, sealing, *assigned)


def _topics(warm: None, *arguments: Any) -> None:
    """Make topics once the packages are warm."""
    del warm
    profiling.make_topics(*arguments)


def _works(context: Context, missing: Mapping[str, Artifact]) -> dict[str, Work]:
    """Return the row-wise work that the missing artifacts need."""
    profile = context.experiment.profile
    works: dict[str, Work] = {}
    for name, artifact in missing.items():
        if name.endswith(" embeddings"):
            works[name] = Embed(artifact, name.partition(" ")[0], profile.embedder, device_kind(context))
        else:
            side, granularity, _ = typing_parts(name)
            if granularity == "micro":
                works[name] = Tokenise(artifact, name)
            elif granularity == "meso":
                works[name] = Tag(artifact, side, profile.tagger)
    return works


def _artifacts(context: Context) -> dict[str, Artifact]:
    """Return every artifact of this stage by its name: `<side> embeddings` or the typing."""
    embeddings = {f"{side} embeddings": embedding_artifact(context, side) for side in context.experiment.embedded_sides}
    return {**embeddings, **{typing: profile_artifact(context, typing) for typing in context.experiment.typings}}


def _artifact(context: Context, stage: str, config: Any, packages: Sequence[str], parents: Sequence[str]) -> Artifact:
    versions = package_versions(*packages)
    name = fingerprint(stage=stage, version=VERSION, config=config, packages=versions, parents=parents)
    return context.storage.artifact("profile", name)


def _check_topics(context: Context, typing: str, artifact: Artifact) -> None:
    """Refuse fewer topics than `min_topics`, which is no part of the fingerprint, or than the levels that the grid dials them to."""
    if typing_parts(typing)[1] == "macro":
        found = artifact.manifest
        levels = {cell.level for cell in context.experiment.cells if cell.typing == typing}
        least = context.experiment.profile.topics.min_topics
        check_topics(typing, found["M"], found["distinct"], least, "profile.topics.min_topics")
        check_topics(typing, found["M"], found["distinct"], len(levels), "the number of levels asked for")


def _sealing(context: Context) -> dict[str, Any]:
    """Return what every manifest of this stage holds beside its own figures."""
    return {"stage": "profile_corpus", "version": VERSION, "corpus": corpus_artifact(context).fingerprint}


def _faiss() -> str:
    """Return which of the two packages of faiss is installed."""
    try:
        importlib.metadata.version("faiss-cpu")
    except importlib.metadata.PackageNotFoundError:
        return "faiss-gpu"
    return "faiss-cpu"


def _span_rows(context: Context, n: int) -> int:
    """Return the rows of a span: a multiple of the embedder's group, and short enough to keep every worker busy."""
    group = context.experiment.profile.embedder.group
    rows = min(SPAN_ROWS, math.ceil(n / (4 * context.workers)))
    return group * max(1, math.ceil(rows / group))


def _wants_gpu(work: Work) -> bool:
    return isinstance(work, Embed) and work.config.name == "transformer" and work.config.precision != "int8"


if __name__ == "__main__":
    raise SystemExit(main("profile_corpus"))
