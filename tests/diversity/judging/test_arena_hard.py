"""Arena-Hard's judgments, as they lie in its folders, against its own rule said in other words."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diversity.judging.arena_hard import JudgmentsError, read_judgments
from diversity.judging.summary import METRICS, prompt_scores
from diversity.judging.verdicts import outcomes
from ray_jobs.tools import judgments

# What the model's answer gets in its second game, where it is A, and how often it counts.
WORTH = {"A>>B": (1, 3), "A>B": (1, 1), "A=B": (0.5, 1), "B>A": (0, 1), "B>>A": (0, 3)}
WORTH |= {"A<B": (0, 1), "A<<B": (0, 3), "B<A": (1, 1), "B<<A": (1, 3), "B=A": (0.5, 1)}


def folder(root, games, version=2, answers=True):
    """Write a model's judgments, and both sides' answers, as the tool lays them out; return the file of judgments."""
    name, key = ("baseline", "uid") if version == 2 else (None, "question_id")
    lines = []
    for i, pair in enumerate(games):
        said = [{"answer": f"I say [[{label}]]"} if version == 2 else f"I say [[{label}]]" for label in pair]
        row = {key: f"q{i}", "model": "mine", "judge": "some-judge"} | ({name: "theirs", "category": "hard_prompt"} if name else {})
        lines.append({**row, "games": [{"score": label, "judgment": one} for label, one in zip(pair, said, strict=True)]})
    path = root / "model_judgment" / "some-judge" / "mine.jsonl"
    written = {path: lines}
    if answers:
        for model, text in (("mine", "# A header\n- and an item"), ("theirs" if name else "gpt-4-0314", "words")):
            turn = {"messages": [{"role": "assistant", "content": {"answer": text}}]}
            old = {"choices": [{"turns": [{"content": text}]}]}
            rows = [{key: f"q{i}", **(turn if version == 2 else old)} for i in range(len(games))]
            written[root / "model_answer" / f"{model}.jsonl"] = rows
    for place, rows in written.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LABEL = st.sampled_from([*WORTH, None, "A>A"])


@given(st.lists(st.tuples(LABEL, LABEL), min_size=2, max_size=12), st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_are_those_of_every_battle_written_out(tmp_path, games, version):
    verdicts, facts = read_judgments(folder(tmp_path, games, version))
    battles, by_prompt = [], []
    for first, second in games:
        known = [(1 - WORTH[first][0], WORTH[first][1])] if first in WORTH else []
        known += [WORTH[second]] if second in WORTH else []
        if len(known) == 2:
            battles += [score for score, times in known for _ in range(times)]
        by_prompt += [np.mean([score for score, _ in known])] * bool(known)
    assert facts["arena_hard"] == pytest.approx(100 * np.mean(battles) if battles else float("nan"), nan_ok=True)
    scores = prompt_scores(verdicts)
    assert sorted(scores.values) == pytest.approx(sorted(by_prompt)) and len(scores) == len(by_prompt)
    counted = outcomes(verdicts)
    lost = [label for pair in games for label in pair if label not in WORTH]
    assert (counted["no_verdict"], counted["ambiguous"]) == (lost.count(None), lost.count("A>A"))
    assert sum(counted.values()) == 2 * len(games) == len(verdicts)
    assert facts["lengths"] and set(verdicts["longer"].to_pylist()) == {len("# A header\n- and an item") - len("words")}
    assert set(verdicts["more_headers"].to_pylist()) == {0.5}, "one header against none"


def test_the_command_prints_the_rates_that_can_be_known(tmp_path, capsys):
    games = [("A>B", "A>>B"), ("B>A", "A=B"), ("B>>A", "B>A"), (None, "A>B")]
    path = folder(tmp_path / "with", games)
    assert judgments.main(["--import", str(path)]) == 0
    told = capsys.readouterr().out
    assert "mine against theirs, annotated by some-judge: 8 rows (7 ok, 1 no verdict)" in told
    assert all(name in told for name in METRICS) and "Arena-Hard's score" in told
    assert judgments.main(["--import", str(folder(tmp_path / "without", games, answers=False))]) == 0
    told = capsys.readouterr().out
    assert "controlled" not in told and "length and style are not known" in told and "judged_win_rate_weighted" in told


def test_a_prompt_that_is_judged_twice_counts_twice_in_its_own_score(tmp_path):
    path = folder(tmp_path, [("B>A", "A>B"), ("B>A", "A>B"), ("A>B", "B>A")])
    assert read_judgments(path)[1]["arena_hard"] == pytest.approx(200 / 3)
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + last + "\n")
    verdicts, facts = read_judgments(path)
    assert facts["arena_hard"] == 50 and len(verdicts) == 8 and len(prompt_scores(verdicts)) == 3


def test_the_judges_words_are_kept_and_what_can_not_be_read_is_told(tmp_path):
    path = folder(tmp_path, [("A>B", "A>B")])
    assert read_judgments(path)[0]["raw"].to_pylist() == ["I say [[A>B]]"] * 2
    row = json.loads(path.read_text())
    row["games"] = [{"score": {}}, {"score": "A>B", "judgment": {"answer": "\ud800"}}]
    path.write_text(json.dumps(row) + "\n")
    assert read_judgments(path)[0]["outcome"].to_pylist() == ["ambiguous", "ok"]
    path.write_text(json.dumps({**row, "uid": "\ud800"}) + "\n")
    with pytest.raises(JudgmentsError, match=r"mine\.jsonl: a line's uid holds half of a surrogate pair"):
        read_judgments(path)
    path.write_text(json.dumps(row) + "\n")
    for text in ('{"uid": "q0", "messages": [\n', "[" * 100_000):
        (tmp_path / "model_answer" / "mine.jsonl").write_text(text)
        with pytest.raises(JudgmentsError, match=r"model_answer/mine\.jsonl can't be read as JSON lines"):
            read_judgments(path)
    (tmp_path / "model_answer" / "mine.jsonl").write_text('["x"]\n{"uid": "q0", "messages": ["x"]}\n')
    assert not read_judgments(path)[1]["lengths"]


def test_what_holds_no_judgments_is_told(tmp_path):
    path = folder(tmp_path, [("A>B", "A>B")])
    path.write_text(path.read_text() + json.dumps({"uid": "q9", "model": "another", "games": [{}, {}]}) + "\n")
    with pytest.raises(JudgmentsError, match="judgments of another, mine: one model a file"):
        read_judgments(path)
    for text in ("", "{}\n", '{"uid": "a", "games": [{}]}\n', "no json"):
        path.write_text(text)
        with pytest.raises(JudgmentsError, match=r"mine\.jsonl (holds no judgments|can't be read)"):
            read_judgments(path)
