"""Answers are compared pair by pair: prompts and answers come in, a judge's verdicts and win rates go out.

`prompt_sets.py` and `answer_sets.py` hold what is compared, `rubrics.py` what a judge is told, `pairs.py` what it is asked and in which
order, `verdicts.py` what it said. `win_rates.py`, `alpaca_eval.py`, `agreement.py` and `controls.py` say what that is worth; they know no
model and no network. Open `summary.py` first: it puts them together for one answerer against one baseline.
"""
