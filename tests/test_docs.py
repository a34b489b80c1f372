"""Every page tells the truth: links lead somewhere, commands are taken by their programs, named functions exist, examples run."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
import runpy
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diversity.cell import Cell
from diversity.config import ConfigError
from ray_jobs import __main__ as program

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
PROGRAM = re.compile(
    r"(?:^|(?<=-- )|(?<=&& ))(?:[A-Z_]+=\S+ )*(?:[\w./$]*/)?"
    r"(?:python -m (?P<module>(?:ray_jobs|benchmarks|training)[\w.]*)|sft-diversity)(?= |$)(?P<rest>.*)"
)
UNTIL = {"|", ">", ">>", "2>", "2>&1", "&", "&&", ";", "||"}  # where a command's own arguments end


class Parsed(BaseException):
    """Raised in the place of the work, once a program has taken its arguments."""


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    found = re.findall(r"^#+ +(.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{shown(page)}: {target}"
        assert not anchor or anchor in anchors(found), f"{shown(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_test_that_is_named_exists(page: Path) -> None:
    """`folder/test_file.py::test_name`, or `::test_name` of the file before; without a folder in tests/training."""
    file = Path()
    for named, test in re.findall(r"`([\w/]*\.py)?::(test_\w+)`", page.read_text("utf-8")):
        if named:
            file = ROOT / named if "/" in named else ROOT / "tests" / "training" / named
        assert file.is_file() and f"def {test}(" in file.read_text("utf-8"), f"{shown(page)}: {file}::{test}"


def pieces(text: str) -> tuple[list[str], str]:
    """Return the lines of a page's shell blocks, continued ones joined, and the page without its blocks."""
    lines: list[str] = []
    prose: list[str] = []
    language = None
    for line in text.splitlines():
        if line.startswith("```"):
            language = line[3:].strip() or "text" if language is None else None
        elif language is None:
            prose.append(line)
        elif language in ("sh", "bash", "console"):
            if lines and (lines[-1].endswith("\\") or lines[-1].count("'") % 2):
                lines[-1] = lines[-1].removesuffix("\\") + " " + line
            else:
                lines.append(line.partition("  #")[0])
    return lines, "\n".join(prose)


def commands(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """Yield (module, arguments) of every command of ours in a page's blocks and code spans; None is `sft-diversity`."""
    lines, prose = pieces(text)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in [*lines, *(span for span in spans if PROGRAM.match(span))]:
        found = PROGRAM.search(line)
        if found is None:
            continue
        lexer = shlex.shlex(found["rest"], posix=True, punctuation_chars=";&|")
        lexer.whitespace_split, lexer.commenters = True, "#"
        yield found["module"], list(itertools.takewhile(lambda token: token not in UNTIL, lexer))


def taken(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program up to the point where it has taken its arguments; a stage also reads the configuration that they name."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def stop(self: Any, *given: Any, parse: Any = parse, **more: Any) -> Any:
            found = parse(self, *given, **more)
            config, overrides = getattr(found, "config", None), getattr(found, "overrides", None)
            if isinstance(config, Path) and overrides is not None and (ROOT / config).is_file():
                from ray_jobs.job.experiment import load_experiment

                load_experiment(ROOT / config, overrides, inside_job=False)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_command_is_taken_by_its_program(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, arguments in commands(page.read_text("utf-8")):
        told = f"{shown(page)}: {module or 'sft-diversity'} {shlex.join(arguments)}"
        name = None
        if module in (None, "ray_jobs"):
            name, arguments = (arguments[0] if arguments else "--help"), arguments[1:]
            if name.startswith("<") or name in ("--help", "COMMAND"):
                continue
            assert name in program.COMMANDS, told
            module = f"ray_jobs.{name}" if name in program.STAGES else f"ray_jobs.tools.{name}"
        if not arguments and module != "ray_jobs":
            assert importlib.util.find_spec(str(module)) is not None, told
            continue
        if any("…" in argument or argument.startswith("[--") for argument in arguments):
            continue  # a synopsis: which arguments there are is said by its own --help
        try:
            with monkeypatch.context() as patch:
                taken(str(module), arguments, patch)
        except (SystemExit, ConfigError) as error:
            pytest.fail(f"{told}: {error}")


def test_make_targets_exist() -> None:
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in PAGES:
        asked = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)(?=$|`| +#| [A-Z]+=)", page.read_text("utf-8"), re.M))
        assert asked <= made, (shown(page), asked - made)


def test_a_wrong_command_and_a_wrong_flag_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    block = "sft-diversity pick a.jsonl --sise 3   # no\nray job submit -- python -m ray_jobs.ingest paper.yaml a=1 && ls"
    text = f"```sh\n{block}\n```\n`sft-diversity --help`"
    found = list(commands(text))
    assert found == [(None, ["pick", "a.jsonl", "--sise", "3"]), ("ray_jobs.ingest", ["paper.yaml", "a=1"]), (None, ["--help"])]
    with pytest.raises(SystemExit):
        taken("ray_jobs.tools.pick", found[0][1][1:], monkeypatch)


def test_functions_named_on_the_way_through_the_rooms_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:diversity|training|ray_jobs)(?:\.\w+)+)`", text)
    assert len(named) > 30
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        if path.is_dir() or path.with_suffix(".py").is_file():
            continue
        module, *rest = name.rsplit(".", 1)
        while not ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
            assert "." in module, name
            module, attribute = module.rsplit(".", 1)
            rest.insert(0, attribute)
            if ROOT.joinpath(*module.split("."), "__init__.py").is_file():
                break
        found: Any = importlib.import_module(module)
        for attribute in rest:
            assert hasattr(found, attribute), name
            found = getattr(found, attribute)


def test_the_tree_has_every_room_and_nothing_else() -> None:
    """README's tree: one line a room, and each line's folder or file is there."""
    (tree,) = re.findall(r"## The tree\n+```\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    stack: list[str] = []
    named = set()
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        stack[depth:] = [name]
        path = ROOT.joinpath(*stack)
        assert path.exists(), path
        named.add(str(path.relative_to(ROOT)))
    assert len(tree.splitlines()) <= 30
    inits = [path for package in ("diversity", "training", "ray_jobs") for path in (ROOT / package).glob("*/__init__.py")]
    assert {str(path.parent.relative_to(ROOT)) for path in inits} <= named


def test_the_front_door_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def example(name: str) -> types.ModuleType:
    """Return CONTRIBUTING's example of that file as a module."""
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S):
        path = block.splitlines()[0].removeprefix("# ")
        if path == name:
            assert ast.get_docstring(ast.parse(block))
            module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
            exec(compile(block, path, "exec"), module.__dict__)
            sys.modules[module.__name__] = module
            return module
    raise AssertionError(f"CONTRIBUTING.md has no example {name}")


def test_the_example_of_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    from diversity.selection.strategies import STRATEGIES, SelectionConfig, Strategy, select
    from tests.diversity.selection.test_strategies import made_up

    module = example("diversity/selection/strategies/shortest.py")
    monkeypatch.setitem(STRATEGIES, "shortest", Strategy(f"{module.__name__}:select"))
    inputs = made_up(0, SelectionConfig())
    picks = select(inputs, Cell("shortest", 20, None), SelectionConfig())
    lengths = inputs.tokens["response"]
    assert len(set(picks.rows)) == 20 and lengths[picks.rows].max() <= np.delete(lengths, picks.rows).min()


def test_the_example_of_an_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    from diversity.typings.embedders import EMBEDDERS, EmbedderConfig, embed

    module = example("diversity/typings/embedders/letters.py")
    monkeypatch.setitem(EMBEDDERS, "letters", f"{module.__name__}:LettersEmbedder")
    found = embed(["abba", "BAAB", "xyz"], EmbedderConfig(name="letters"))
    assert found.shape == (3, 26) and np.allclose(found[0], found[1]) and abs(found[0] @ found[2]) < 1e-3


def test_the_example_of_a_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    from diversity.typings.taggers import TAGGERS, TaggerConfig, load_tagger

    module = example("diversity/typings/taggers/first_word.py")
    monkeypatch.setitem(TAGGERS, "first_word", f"{module.__name__}:FirstWordTagger")
    assert load_tagger(TaggerConfig(name="first_word"), "instruction")(["Write a poem", ""]) == [["write"], []]


def test_the_example_of_an_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from tests.training.test_nll import heldout_table
    from training.evaluators import EVALUATORS, EvaluationConfig, Evaluator, Subject, evaluate

    module = example("training/evaluators/first_token.py")
    monkeypatch.setitem(EVALUATORS, "first_token", Evaluator(f"{module.__name__}:evaluate", f"{module.__name__}:FirstTokenConfig"))

    class Repeats(torch.nn.Module):
        """A model whose likeliest next token is always 7."""

        def forward(self, ids: Any) -> Any:
            return types.SimpleNamespace(logits=torch.nn.functional.one_hot(torch.full_like(ids, 7), 50_000).float())

    class Letters:
        """An encoder: two tokens of prompt, then the number of the message's characters modulo 8."""

        def encode_all(self, conversations: Any) -> list[Any]:
            return [
                types.SimpleNamespace(input_ids=np.array([1, 2, 3]), labels=np.array([-100, -100, len(c[1]["content"]) % 8]))
                for c in conversations
            ]

    table = heldout_table()
    split = table.filter(np.array([name == "in" for name in table["split"].to_pylist()]))
    subject = Subject(Repeats(), Letters(), {"in": split}, "cpu")  # type: ignore[arg-type]
    (row,) = evaluate(subject, EvaluationConfig(evaluators=["first_token"]), run="r").table.to_pylist()  # type: ignore[list-item]
    expected = np.mean([len(messages[1]["content"]) % 8 == 7 for messages in split["messages"].to_pylist()])
    assert row["value"] == pytest.approx(expected) and row["metric"] == "first_token"
