"""Shuffles: how often a slope as steep comes by chance alone, from all orders where they are few, else from drawn ones.

A p value from few drawn orders of few points differs from seed to seed, and may fall below what the points can give at all: seven runs in
two blocks of three levels have 36 orders, so no p lies below 2/36. Where the orders can be counted they are.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diversity.effects.regression import Floats, Others, column_of, matrix_of

ORDERS = 20_000  # at most so many are enumerated


def permutation_p(
    x: ArrayLike,
    y: ArrayLike,
    generator: np.random.Generator,
    groups: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    draws: int = 10000,
) -> float:
    """Return the two-sided permutation p value of the slope of y on x, y being shuffled within groups.

    Where there are no more than `ORDERS` different orders, the share of all of them that are at least as extreme, which is exact; else
    (1 + number of draws at least as extreme) / (1 + draws), which is never 0 and valid at any number of draws. With covariates it is the
    residuals of y that are shuffled (Freedman and Lane), and what is compared is Student's t of the model fitted anew: the slope alone
    would be too often extreme, since residuals are shorter than the noise. That is nearly exact; without covariates it is exact.

    Args:
        x: (n,) predictor.
        y: (n,) response.
        generator: source of the shuffles, where they are drawn.
        groups: (n,) labels within which points are exchangeable; None for one group.
        covariates: (n,) or (n, c) further predictors.
        draws: number of shuffles, at least 1.
    """
    test = _Test(x, groups, covariates)
    y = column_of(y, "y")
    free = test.others.residuals(y)[test.place]
    if test.constant or float(free @ free) <= 1e-24 * float(y @ y):
        return 1.0  # nothing varies within the groups
    return test.p(free, generator, draws)


def smallest_p(x: ArrayLike, groups: ArrayLike | None = None, covariates: ArrayLike | None = None) -> float | None:
    """Return the smallest p that shuffling can give these points, reached where y follows x exactly; None where orders are many.

    Args:
        x: (n,) predictor.
        groups: (n,) labels within which points are shuffled.
        covariates: (n,) or (n, c) further predictors.
    """
    test = _Test(x, groups, covariates)
    if test.constant:
        return 1.0
    if test.orders > ORDERS:
        return None
    return test.p(test.against[:, 0], None, 0)


def orders_of(x: ArrayLike, generator: np.random.Generator, groups: ArrayLike | None = None, draws: int = 1999) -> tuple[Floats, bool]:
    """Return `(orders, n)` x less its mean in each group, in every order within groups, and True; drawn orders and False if they are many.

    Shuffling x is the same as shuffling y. `|orders @ y|` beside `|orders[0] @ y|`, the order as it is, gives the p of `permutation_p`:
    what power is simulated with, for many y at once.

    Args:
        x: (n,) predictor.
        generator: of drawn orders.
        groups: (n,) labels within which points are shuffled.
        draws: number of drawn orders.
    """
    test = _Test(x, groups, None)
    free = test.against[:, 0]
    if test.orders <= ORDERS:
        found = np.zeros((1, 0))
        for first, group in zip(np.cumsum([0, *test.others.sizes[:-1]]), test.groups, strict=True):
            rows = {kind: int(first) + int(np.flatnonzero(group == kind)[0]) for kind in np.unique(group).tolist()}
            here = free[np.array([[rows[kind] for kind in order] for order in _arrangements(group.tolist())])]
            left, right = np.repeat(found, len(here), axis=0), np.tile(here, (len(found), 1))
            found = np.concatenate([left, right], axis=1)
    else:
        keys = generator.random((draws, len(free))) + test.others.labels[test.place]
        found = free[np.argsort(keys, axis=1)]
    ordered = np.empty((len(found) + 1, len(free)))
    ordered[:, test.place] = np.concatenate([free[None], found])
    return ordered, test.orders <= ORDERS


class _Test:
    """The design of a shuffle test: points in order of their groups, and what shuffled y is multiplied with."""

    def __init__(self, x: ArrayLike, groups: ArrayLike | None, covariates: ArrayLike | None) -> None:
        x = column_of(x, "x")
        self.others = Others(len(x), groups, covariates)
        self.place = np.argsort(self.others.labels, kind="stable")
        free, basis = self.others.residuals(x)[self.place], self.others.basis()[self.place]
        self.length = float(free @ free)
        self.against = np.column_stack([free, basis])
        self.constant = self.length <= 1e-12 * float(x @ x)
        alike = x[:, None] if covariates is None else np.column_stack([x, matrix_of(covariates)])
        kinds = np.unique(alike, axis=0, return_inverse=True)[1].ravel()[self.place]
        self.groups = np.split(kinds, np.cumsum(self.others.sizes)[:-1])
        self.orders = math.prod(math.factorial(len(g)) // math.prod(map(math.factorial, Counter(g.tolist()).values())) for g in self.groups)

    def p(self, y: Floats, generator: np.random.Generator | None, draws: int) -> float:
        """Return p of (n,) residuals, in order of groups."""
        total = float(y @ y)
        observed = float(self._extremeness((y @ self.against)[None], total)[0]) * (1 - 1e-9)
        if self.orders <= ORDERS:
            found = self._extremeness(self._all_products(y), total)
            return int(np.count_nonzero(found >= observed)) / self.orders
        assert generator is not None
        extreme, ends = 0, np.cumsum(self.others.sizes)
        size = max(1, 4_000_000 // len(y))
        for start in range(0, draws, size):
            drawn = generator.random((min(size, draws - start), len(y)))
            found = self._extremeness(_shuffled_products(y, self.against, ends, drawn), total)
            extreme += int(np.count_nonzero(found >= observed))
        return (1 + extreme) / (1 + draws)

    def _extremeness(self, products: Floats, total: float) -> Floats:
        explained = products[:, 0] ** 2 / self.length
        left = total - (products[:, 1:] ** 2).sum(axis=1) - explained
        return np.asarray(explained / np.maximum(left, 1e-12 * total), np.float64)

    def _all_products(self, y: Floats) -> Floats:
        """Return (orders, columns) products of y with the design in every order, group by group: they add up."""
        first, found = 0, np.zeros((1, self.against.shape[1]))
        for group in self.groups:
            last = first + len(group)
            rows = {kind: first + int(np.flatnonzero(group == kind)[0]) for kind in np.unique(group).tolist()}
            orders = np.array([[rows[kind] for kind in order] for order in _arrangements(group.tolist())])
            here = np.einsum("oic,i->oc", self.against[orders], y[first:last])
            found = (found[:, None] + here[None]).reshape(-1, found.shape[1])
            first = last
        return found


def _arrangements(kinds: list[int]) -> Iterator[list[int]]:
    """Yield every different order of items of which some are alike."""
    counts = Counter(kinds)
    if len(counts) == len(kinds):
        yield from (list(order) for order in itertools.permutations(kinds))
        return

    def extend(order: list[int]) -> Iterator[list[int]]:
        if len(order) == len(kinds):
            yield list(order)
            return
        for kind in counts:
            if counts[kind]:
                counts[kind] -= 1
                yield from extend([*order, kind])
                counts[kind] += 1

    yield from extend([])


@numba.njit(cache=True)
def _shuffled_products(y: Floats, against: Floats, ends: NDArray[np.int64], drawn: Floats) -> Floats:  # pragma: no cover - compiled
    """Return (draws, columns) products of y, shuffled within consecutive groups by Fisher and Yates, with each column of `against`."""
    n, columns = against.shape
    products = np.zeros((len(drawn), columns))
    shuffled = np.empty(n)
    for b in range(len(drawn)):
        shuffled[:] = y
        first = 0
        for last in ends:
            for i in range(last - 1, first, -1):
                j = first + int(drawn[b, i] * (i - first + 1))
                shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
            first = last
        for i in range(n):
            for c in range(columns):
                products[b, c] += shuffled[i] * against[i, c]
    return products
