from hypothesis import given
from hypothesis import strategies as st

from dynammo.seeds import derive_seed


def test_pinned() -> None:
    # int.from_bytes(sha256(b"1/adapter/3").digest()[:8], "big") >> 1, computed with hashlib.
    assert derive_seed(1, "adapter", 3) == 9082532671117338460


@given(st.integers(0, 2**32 - 1), st.text(max_size=5))
def test_fits_torch_and_depends_on_the_seed(seed: int, purpose: str) -> None:
    value = derive_seed(seed, purpose)
    assert 0 <= value < 2**63
    assert value != derive_seed(seed + 1, purpose)
