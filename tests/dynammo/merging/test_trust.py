import pytest
import torch

from dynammo.adapters.linear import LinearAdapter
from dynammo.merging.trust import SCALES, Answers, answered, gains, scaled, trusted


def test_a_scale_is_that_share_of_what_a_linear_adapter_computes() -> None:
    adapter = LinearAdapter(3)
    torch.nn.init.normal_(adapter.mix.weight)
    torch.nn.init.normal_(adapter.mix.bias)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 4, 4)
    whole = adapter(x)
    adapter.load_state_dict(scaled(adapter.state_dict(), 0.5))
    torch.testing.assert_close(adapter(x), whole / 2)


def test_answers_are_counted_against_the_bare_backbones() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    predicted = [torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 0, 2])]
    assert answered(targets, predicted, ["a", "b"]) == {
        "a": {"images": 3, "better": [0, 1, 2], "worse": [0, 1, 0]},
        "b": {"images": 1, "better": [0, 1, 0], "worse": [0, 0, 0]},
    }


def test_the_interval_is_mcnemars_of_one_class_and_every_class_counts_the_same() -> None:
    own: Answers = {"images": 100, "better": [0, 0, 30], "worse": [0, 0, 10]}
    (gain,) = (found for found in gains({"a": own}) if found.scale == 1)
    error = ((40 - 20**2 / 100) ** 0.5) / 100
    assert gain.difference == pytest.approx(0.2)
    assert (gain.low, gain.high) == pytest.approx((0.2 - 1.959964 * error, 0.2 + 1.959964 * error))
    few: Answers = {"images": 10, "better": [0, 0, 0], "worse": [0, 0, 4]}
    assert gains({"a": own, "b": few})[-1].difference == pytest.approx((0.2 - 0.4) / 2)


@pytest.mark.parametrize(
    ("better", "worse", "scale"),
    [
        ([0, 5, 8], [0, 4, 9], 1.0),  # worse by no more than noise
        ([0, 5, 1], [0, 4, 30], 0.5),
        ([0, 1, 1], [0, 40, 30], 0.0),
    ],
)
def test_less_is_trusted_only_where_more_was_shown_to_harm(
    better: list[int], worse: list[int], scale: float
) -> None:
    assert trusted({"a": {"images": 100, "better": better, "worse": worse}}).scale == scale


def test_nothing_held_out_says_nothing() -> None:
    gain = trusted({})
    assert (gain.scale, gain.low, gain.high) == (SCALES[-1], -1, 1)
