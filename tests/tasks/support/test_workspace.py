from __future__ import annotations

from dataclasses import replace

from dynammo.config import AdapterConfig, MergeConfig, load_config
from tasks.support.workspace import Context, context_of, provenance


def test_a_context_says_where_a_run_is() -> None:
    config = load_config(None, {"device": "cpu", "train.cache_mb": 7})
    context = context_of(config, manifest="m.json", label="1/3")
    assert context == Context(manifest="m.json", device="cpu", cache_mb=7, label="1/3")
    assert context.named("merged") == replace(context, label="merged 1/3")


def test_a_checkpoint_says_where_it_came_from() -> None:
    ref = {"path": "backbone-a.safetensors", "sha256": "a" * 64}
    adapter, merge = AdapterConfig(options={"alpha": 0.1}), MergeConfig(rule="average")
    found = provenance(
        adapter, merge, config={"seed": 1}, backbone=ref, adapters=[ref, ref], previous=None
    )
    assert found["config"] == {
        "adapter": adapter.model_dump(mode="json"),
        "merge": {"rule": "average", "options": {}, "trust": "full"},
        "seed": 1,
    }
    assert found["config"]["adapter"]["options"] == {"alpha": 0.1}
    assert found["parents"] == {
        "backbone": "a" * 64,
        "adapters": ["a" * 64] * 2,
        "previous": None,
    }
    assert {"python", "torch", "timm", "numpy"} <= found["versions"].keys()
