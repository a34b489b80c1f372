"""What judging would cost before any of it is paid: pairs, verdicts, tokens, money, and the smallest difference that shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from diversity.judging.pairs import Slot
from diversity.judging.win_rates import planned_effect
from diversity.llm.budget import BudgetConfig

CHARS_A_TOKEN = 4.0
"""Where nothing of this model was counted yet; English text under the usual tokenizers."""


@dataclass
class Cost:
    """What one judge is asked for.

    Attributes:
        outcomes: verdicts that need no request, by why.
        verdicts: all that are wanted.
        known: of those, answered already.
        to_pay: distinct requests that are left.
        prompt_chars: of those.
        completion_tokens: most that their answers may have.
        prompts: that are judged, for the effect that shows.
    """

    verdicts: int = 0
    known: int = 0
    to_pay: int = 0
    prompt_chars: int = 0
    completion_tokens: int = 0
    prompts: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set, repr=False)

    def add(self, slots: Iterable[Slot], known: Mapping[str, object] | set[str]) -> None:
        """Count the verdicts that are wanted on one answerer against one baseline."""
        for slot in slots:
            self.verdicts += 1
            if slot.key is None or slot.body is None:
                self.outcomes[slot.outcome] = self.outcomes.get(slot.outcome, 0) + 1
            elif slot.key in known or slot.key in self._seen:
                self.known += 1
            else:
                self._seen.add(slot.key)
                self.to_pay += 1
                self.prompt_chars += sum(len(message["content"]) for message in slot.body["messages"])
                self.completion_tokens += slot.body["max_tokens"]

    def lines(self, name: str, budget: BudgetConfig, chars_a_token: float = CHARS_A_TOKEN) -> list[str]:
        """Return what a person decides by.

        Args:
            name: of the judge.
            budget: its limits, and the price if one is given.
            chars_a_token: characters of a token, measured where some are.
        """
        prompt_tokens = self.prompt_chars / chars_a_token
        free = ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in sorted(self.outcomes.items()))
        found = [
            f"{name}: {self.verdicts:,} verdicts are wanted{f' ({free}: not asked)' if free else ''}, {self.known:,} are known or shared, "
            f"{self.to_pay:,} to pay",
            f"{name}: about {prompt_tokens:,.0f} tokens to read, at most {self.completion_tokens:,} to write"
            + (f", at most {budget.price.of(prompt_tokens, self.completion_tokens):,.2f}" if budget.price else ""),
            f"{name}: {self.prompts:,} prompts show a difference of {100 * planned_effect(self.prompts):.1f} points between two answerers "
            "(80% power, two-sided 5%, if their scores on a prompt differ with a deviation of 0.55)",
        ]
        for what, limit, needs in (
            ("requests", budget.requests, self.to_pay),
            ("tokens", budget.tokens, prompt_tokens + self.completion_tokens),
        ):
            if limit is not None and needs > limit:
                found.append(
                    f"{name}: that may be more than the budget of {limit:,} {what}: the job would end with exit code 3 and go on later"
                )
        return found
