import torch
from hypothesis import given
from hypothesis import strategies as st

from dynammo.heads.scaling import head_features, power_normalise


def test_the_square_root_of_each_entry_with_its_sign_at_unit_length() -> None:
    """By hand: (9, -16, 0) -> (3, -4, 0), whose length is 5."""
    torch.testing.assert_close(
        power_normalise(torch.tensor([9.0, -16.0, 0.0]), 0.5), torch.tensor([0.6, -0.8, 0.0])
    )


@given(st.integers(0, 2**31), st.floats(0.1, 1), st.floats(0.01, 100))
def test_length_one_whatever_the_unit(seed: int, power: float, unit: float) -> None:
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))
    result = power_normalise(features, power)
    torch.testing.assert_close(result.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(power_normalise(unit * features, power), result)
    assert torch.equal(result.sign(), features.sign())


def test_zeros_stay_zeros() -> None:
    assert torch.equal(power_normalise(torch.zeros(2, 3), 0.5), torch.zeros(2, 3))


def test_only_a_head_with_a_power_takes_normalised_features() -> None:
    features = torch.tensor([[9.0, 16.0]])
    plain = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    assert head_features(features, plain) is features
    power = {**plain, "power": torch.tensor(0.5, dtype=torch.float64)}
    torch.testing.assert_close(head_features(features, power), torch.tensor([[0.6, 0.8]]))
