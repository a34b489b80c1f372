"""Rubrics: what a judge is told, as files with a version and criteria. Three come with the package; any other is a path.

A file has a head in YAML between two lines of `---` (`version`, `verdict`, `criteria`), then `## system` and `## user`. In them
`{question}`, `{answer_a}`, `{answer_b}` and `{fence}` are filled in one pass, so that braces in an answer stay as they are. The fence is a
word that no answer can know beforehand: what stands in an answer can't close it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from diversity.artifact import digest
from diversity.config import ConfigError, near_matches

Verdict = Literal["five", "json", "logprobs"]
LABELS = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}
"""Of the answer that stands first, what each label is worth."""
STRENGTH = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}
JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "verdict": {"type": "string", "enum": list(LABELS)}},
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}
_PLACES = re.compile(r"\{(question|answer_a|answer_b|fence)\}")


@dataclass(frozen=True)
class Rubric:
    """What a judge is told.

    Attributes:
        name: the file's, without its suffix.
        version: raised whenever the text changes.
        verdict: `five`: labels in the text; `json`: labels in a JSON object; `logprobs`: how likely the next token is `A` or `B`.
        criteria: what answers are compared by.
        system: the system's turn.
        user: the user's, with its places.
    """

    name: str
    version: int
    verdict: Verdict
    criteria: tuple[str, ...]
    system: str
    user: str

    @property
    def digest(self) -> str:
        """Return the hash of all that a judge sees of it."""
        return digest([self.verdict, self.system, self.user])

    def messages(self, question: str, answer_a: str, answer_b: str) -> list[dict[str, str]]:
        """Return the conversation that asks for a verdict on two answers, A first."""
        fence = hashlib.blake2b("\0".join((question, answer_a, answer_b)).encode(errors="surrogatepass"), digest_size=4).hexdigest()
        values = {"question": question, "answer_a": answer_a, "answer_b": answer_b, "fence": fence}
        system, user = (_PLACES.sub(lambda match: values[match[1]], text) for text in (self.system, self.user))
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def built_in() -> list[str]:
    """Return the names of the rubrics that come with the package."""
    folder = resources.files("diversity.judging").joinpath("rubrics")
    return sorted(entry.name.removesuffix(".md") for entry in folder.iterdir() if entry.name.endswith(".md"))


def load_rubric(name: str) -> Rubric:
    """Return a rubric by its name, or by the path of its file.

    Raises:
        ConfigError: there is none, or the file is no rubric.
    """
    if name in built_in():
        text = resources.files("diversity.judging").joinpath("rubrics").joinpath(f"{name}.md").read_text("utf-8")
        return parse_rubric(name, text)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"rubric {name!r} is neither a file nor one of ours{near_matches(name, built_in())}")
    return parse_rubric(path.stem, path.read_text("utf-8"))


def parse_rubric(name: str, text: str) -> Rubric:
    """Return the rubric that a file's text holds.

    Raises:
        ConfigError: it is none; the message says what is missing.
    """
    parts = re.fullmatch(r"---\n(.*?)\n---\n## system\n(.*?)\n## user\n(.*)", text, re.DOTALL)
    if parts is None:
        raise ConfigError(f"rubric {name!r}: a head between two lines of ---, then '## system' and '## user', in this order")
    try:
        head = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ConfigError(f"rubric {name!r}: its head is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(head, dict) or not isinstance(head.get("version"), int) or head.get("verdict") not in get_args(Verdict):
        raise ConfigError(f"rubric {name!r}: its head needs version (a number) and verdict (one of {', '.join(get_args(Verdict))})")
    missing = {"question", "answer_a", "answer_b"} - set(_PLACES.findall(parts[3]))
    if missing:
        raise ConfigError(f"rubric {name!r}: its user's turn has no {{{sorted(missing)[0]}}}")
    criteria = tuple(str(one) for one in head.get("criteria") or ())
    return Rubric(name, head["version"], head["verdict"], criteria, parts[2].strip(), parts[3].strip())
