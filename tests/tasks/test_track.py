from prefect import Task

from flows.methods import adapting, own_network, shared_features, task_heads
from flows.support import learning
from tasks.support.caching import CODE, StepCache


def test_a_runs_key_follows_from_the_code_of_every_step() -> None:
    """Else a run of changed code would be taken for one that is done."""
    steps = {
        value.fn.__module__
        for module in (learning, adapting, own_network, shared_features, task_heads)
        for value in vars(module).values()
        if isinstance(value, Task) and isinstance(value.cache_policy, StepCache)
    }
    assert len(steps) > 5
    assert steps <= set(CODE)
