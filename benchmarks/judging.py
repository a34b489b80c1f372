"""Judging: AlpacaEval's own figures, how often intervals cover, length control under planted bias, and what it costs to compute.

    python -m benchmarks.judging                      the tables of docs/judging.md (some minutes)
    python -m benchmarks.judging --quick              fewer simulations
    python -m benchmarks.judging --oracle FOLDER      AlpacaEval 2's figures; exits 1 where one is off by more than 1e-4

The folder of an oracle holds `oracle.json` (set -> figures, as AlpacaEval computed them), `df_gamed.csv`, and for each set a file
`<set>.json` of rows {len_1, len_2, preference}.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from diversity.judging import alpaca_eval
from diversity.judging.style import COLUMNS
from diversity.judging.win_rates import (
    PromptScores,
    bootstrap,
    length_controlled_win_rate,
    length_term,
    style_controlled_win_rate,
    weighted_win_rate,
    win_rate,
)

TOLERANCE = 1e-4
SIMULATIONS = 1000
CASES = {
    "one order": {},
    "both orders": {"orders": 2},
    "weight 3": {"orders": 2, "strong": 0.3},
    "20% ties": {"ties": 0.2},
    "groups of 3": {"group": 3},
}
SIZES = (150, 805, 1305)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--oracle", type=Path, metavar="FOLDER", help="check AlpacaEval's figures in a folder, and nothing else")
    parser.add_argument("--quick", action="store_true", help="a tenth of the simulations")
    given = parser.parse_args()
    if given.oracle:
        return 1 if oracle(given.oracle) else 0
    rounds = SIMULATIONS // 10 if given.quick else SIMULATIONS
    coverage(rounds)
    length_control(rounds)
    style_control(rounds)
    speed()
    transport()
    return 0


def oracle(folder: Path) -> int:
    """Print every figure of a folder beside ours and return how many are off."""
    wanted = json.loads((folder / "oracle.json").read_text("utf-8"))
    with (folder / "df_gamed.csv").open(newline="", encoding="utf-8") as stream:
        gamed = alpaca_eval.Gamed.of(list(csv.DictReader(stream)))
    wrong = checked = 0
    for name, figures in wanted.items():
        if name == "versions":
            continue
        rows = json.loads((folder / f"{name}.json").read_text("utf-8"))
        values = alpaca_eval.preferences([row["preference"] for row in rows])
        baseline, model = (np.array([row[side] for row in rows], np.float64) for side in ("len_1", "len_2"))
        found = {key: value for key, value in alpaca_eval.win_rate(values).items() if key in figures}
        for variant in alpaca_eval.VARIANTS:
            if variant in figures:
                fitted = alpaca_eval.length_controlled(values, baseline, model, gamed, variant)
                found |= {f"{variant}: {key}": value for key, value in flat(fitted, figures[variant]).items()}
        theirs = {key: value for key, value in figures.items() if not isinstance(value, dict)}
        theirs |= {f"{v}: {k}": x for v in alpaca_eval.VARIANTS if v in figures for k, x in flat(figures[v], figures[v]).items()}
        for key, value in theirs.items():
            checked += 1
            off = key not in found or not abs(found[key] - value) <= TOLERANCE
            wrong += off
            print(f"{name:<14} {key:<62} {value:>12.6f} {found.get(key, float('nan')):>12.6f}{'  OFF' if off else ''}")
    print(f"{checked - wrong} of {checked} figures within {TOLERANCE:g}")
    return wrong


def flat(figures: dict, named: dict) -> dict[str, float]:
    """Return a variant's figures and weights in one level, those that are named."""
    weights = {f"weight of {key}": value for key, value in figures.get("weights", {}).items() if key in named.get("weights", {})}
    return {key: value for key, value in figures.items() if key != "weights" and key in named} | weights


def drawn(rng: np.random.Generator, n: int, *, orders: int = 1, strong: float = 0.0, ties: float = 0.0, group: int = 1) -> PromptScores:
    """Return simulated verdicts on n prompts: a gap of each prompt, shared in part by its group, and a judge's noise."""
    groups = np.arange(n) // group
    gap = 0.3 + rng.normal(size=n) + (1.5 * rng.normal(size=groups.max() + 1)[groups] if group > 1 else 0)
    values, weights = np.zeros((orders, n)), np.ones((orders, n))
    for order in range(orders):
        seen = gap + (0.4 if order == 0 else -0.4) + rng.normal(size=n)
        values[order] = np.where(rng.random(n) < ties, 0.5, seen > 0)
        if strong:
            weights[order] = np.where((np.abs(seen) > 1.5) & (values[order] != 0.5), 3.0, 1.0)
    longer, plain = rng.normal(size=n) * 500, np.zeros((n, len(COLUMNS)))
    return PromptScores(
        [str(i) for i in range(n)], groups, values.mean(axis=0), (values * weights).sum(axis=0), weights.sum(axis=0), longer, plain
    )


def coverage(rounds: int) -> None:
    """Print how often 95% intervals hold the true rate, beside those that take every verdict, and every copy of it, for a draw."""
    print(f"95% intervals over {rounds} simulations (a true 95% lies within ±{100 * 1.96 * (0.95 * 0.05 / rounds) ** 0.5:.1f} points)")
    print(f"{'case':<14}" + "".join(f"{f'n = {n}':>12}" for n in SIZES) + f"{'as if independent, n = 805':>30}")
    for name, case in CASES.items():
        rate = weighted_win_rate if case.get("strong") else win_rate
        large = [drawn(np.random.default_rng(seed), 300_000, **case) for seed in range(1000, 1008)]
        truth = float(np.mean([rate(one).value for one in large]))
        found, naive = [], 0
        for n in SIZES:
            rng, hits = np.random.default_rng(n), 0
            for _ in range(rounds):
                scores = drawn(rng, n, **case)
                one = rate(scores)
                hits += one.low <= truth <= one.high
                naive += n == 805 and _as_if_independent(scores, case, truth)
            found.append(hits / rounds)
        print(f"{name:<14}" + "".join(f"{100 * share:>11.1f}%" for share in found) + f"{100 * naive / rounds:>29.1f}%")


def _as_if_independent(scores: PromptScores, case: dict, truth: float) -> bool:
    """Return whether an interval holds the truth that takes each verdict, and each copy of a strong one, for a draw of its own."""
    rate = scores.strong_values.sum() / scores.strong_weights.sum()
    wide = 1.96 * np.sqrt(rate * (1 - rate) / scores.strong_weights.sum())
    return bool(abs(rate - truth) <= wide)


def dressed(rng: np.random.Generator, n: int, truth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (values, longer, style) of a judge that likes length, headers, lists and bold, against a true rate at equal style.

    The answerer writes longer and uses more of all; the four go together, as they do in answers.
    """
    common = rng.normal(size=n)
    longer = 200 + 350 * (rng.normal(size=n) + common)
    style = np.tanh(0.3 + 0.5 * rng.normal(size=(n, len(COLUMNS))) + 0.3 * common[:, None])
    liking = 0.8 * length_term(longer) + style @ np.array([0.9, 0.6, 0.4])
    chance = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + liking)))
    return (rng.random(n) < chance).astype(np.float64), longer, style


def style_control(rounds: int) -> None:
    """Print what length control, and style control, leave of a judge's liking for length and markdown."""
    print("\nstyle control: a judge that likes length, headers, lists and bold, truth 42.6% at equal style")
    print(f"{'n':>6}{'raw':>8}{'equal length':>14}{'equal style':>13}{'bias':>8}{'covers':>9}")
    for n in (150, 805):
        rng, raw, by_length, found, hits, truth = np.random.default_rng(n), [], [], [], 0, 0.426
        for _ in range(rounds):
            values, longer, style = dressed(rng, n, truth)
            scores = PromptScores([str(i) for i in range(n)], np.arange(n), values, values, np.ones(n), longer, style)
            one = style_controlled_win_rate(scores)
            raw.append(values.mean())
            by_length.append(length_controlled_win_rate(scores).value)
            found.append(one.value)
            hits += one.low <= truth <= one.high
        told = "".join(f"{100 * np.mean(one):>{wide}.1f}" for one, wide in ((raw, 8), (by_length, 14), (found, 13)))
        print(f"{n:>6}{told}{100 * (np.mean(found) - truth):>+8.2f}{100 * hits / rounds:>8.1f}%")


def length_control(rounds: int) -> None:
    """Print the bias left when a judge likes length, and the error beside the bootstrap's."""
    print("\nlength control: a judge that likes longer answers, truth 42.6% at equal length")
    print(f"{'n':>6}{'raw':>8}{'controlled':>12}{'bias':>8}{'covers':>9}{'error':>8}{'bootstrap':>11}")
    for n in (150, 805):
        rng = np.random.default_rng(n)
        raw, found, hits, errors, resampled, truth = [], [], 0, [], [], 0.426
        for number in range(rounds):
            longer = 300 + 500 * rng.normal(size=n)
            x = np.tanh(longer / longer.std(ddof=1))
            chance = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + 1.5 * x)))
            values = (rng.random(n) < chance).astype(np.float64)
            scores = PromptScores([str(i) for i in range(n)], np.arange(n), values, values, np.ones(n), longer, np.zeros((n, len(COLUMNS))))
            one = length_controlled_win_rate(scores)
            raw.append(values.mean())
            found.append(one.value)
            errors.append(one.se)
            hits += one.low <= truth <= one.high
            if number < max(4, rounds // 50):
                resampled.append(bootstrap(scores, 1000, number)[:, 1].std(ddof=1) / one.se)
        bias = 100 * (np.mean(found) - truth)
        told = f"{100 * np.mean(raw):>8.1f}{100 * np.mean(found):>12.1f}{bias:>+8.2f}{100 * hits / rounds:>8.1f}%"
        print(f"{n:>6}{told}{100 * np.mean(errors):>8.2f}{np.mean(resampled):>10.2f}x")


def speed() -> None:
    """Print the time of 44 cells x 1,305 prompts x 1,000 bootstraps with length control, refitted in every one."""
    rng = np.random.default_rng(0)
    cells, started, cpu = [drawn(rng, 1305, orders=2) for _ in range(44)], time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:  # NumPy leaves the interpreter's lock while it computes
        list(pool.map(lambda seed: bootstrap(cells[seed], 1000, seed), range(44)))
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    print(f"\n44 cells x 1,305 prompts x 1,000 bootstraps with length control: {wall:.1f} s on 2 threads ({used:.1f} s of CPU)")


def transport(requests: int = 3000) -> None:
    """Print the client's CPU time of a request: sent, answered, booked against a budget and kept; the server is another process."""
    import subprocess
    import sys
    import tempfile

    from diversity.artifact import Storage
    from diversity.llm.answers import Answers
    from diversity.llm.asking import Asker, request_key
    from diversity.llm.budget import BudgetConfig
    from diversity.llm.endpoint import EndpointConfig

    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    bodies = [{"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": f"{i} " + "word " * 400}]} for i in range(requests)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            storage = Storage(folder)
            budget = BudgetConfig(requests=10 * requests, tokens=10**9)
            url, config = f"http://127.0.0.1:{port}/v1", EndpointConfig(concurrency=32)
            asker = Asker(url, config, Answers(storage, "bench"), budget, storage=storage)
            asked = {request_key(body): body for body in bodies}
            asker.ask({request_key(body): body for body in bodies[:64]})  # what is imported by the first request is no request's
            cpu = time.process_time()
            asker.ask(asked)
            used = time.process_time() - cpu
    finally:
        server.terminate()
        server.wait(10)
    print(f"{requests:,} requests, 32 at once, booked and kept: {1000 * used / requests:.2f} ms of CPU each")


async def serve() -> None:
    """Answer every request at once, on a port that is printed: what the client costs is what is measured."""
    from aiohttp import web

    message = {"index": 0, "message": {"role": "assistant", "content": "[[A>B]]"}, "finish_reason": "stop"}
    body = json.dumps({"model": "m", "choices": [message], "usage": {"prompt_tokens": 400, "completion_tokens": 4}})

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text=body, content_type="application/json")

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import sys

    if sys.argv[1:] == ["--serve"]:
        asyncio.run(serve())
    raise SystemExit(main())
