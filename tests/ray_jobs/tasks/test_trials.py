"""Whether a run fits onto the nodes there are, as trying every placement says; and what a trial is given."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.execution.class_cache import _ActorClassCache

from ray_jobs.tasks.trials import Demand, fits, keep_keys_to_nodes

Nodes = list[dict[str, float]]


def tried(demand: Demand, nodes: Nodes) -> bool:
    for placement in itertools.product(range(len(nodes)), repeat=1 + demand.ranks):
        left = [dict(node) for node in nodes]
        for place, bundle in zip(placement, demand.bundles, strict=True):
            for name, amount in bundle.items():
                left[place][name] = left[place].get(name, 0) - amount
        if all(amount > -1e-6 for node in left for amount in node.values()):
            return True
    return False


NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 4), "GPU": st.integers(0, 2), "driver": st.integers(0, 1)}), max_size=3)
DEMANDS = st.builds(
    Demand,
    ranks=st.integers(1, 4),
    cpus_per_rank=st.sampled_from([0.5, 1, 2]),
    driver_cpus=st.sampled_from([0, 0.1, 1]),
    gpu=st.booleans(),
    driver_resource=st.booleans(),
)


@given(demand=DEMANDS, nodes=NODES)
def test_a_run_fits_where_some_placement_does(demand: Demand, nodes: Nodes) -> None:
    assert fits(demand, nodes) == tried(demand, nodes)


def test_ranks_leave_the_head_to_the_driver_that_must_be_there() -> None:
    head, node = {"CPU": 1.0, "driver": 1.0}, {"CPU": 2.0}
    assert fits(Demand(ranks=2, cpus_per_rank=1, driver_cpus=0.1, gpu=False, driver_resource=True), [head, node])


def test_a_trial_is_given_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "planted")
    keep_keys_to_nodes()
    given = _ActorClassCache().get(type("Trial", (), {}))._default_options["runtime_env"]
    assert "PL_DISABLE_FORK" in str(given) and "planted" not in str(given)
