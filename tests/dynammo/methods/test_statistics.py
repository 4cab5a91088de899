"""Heads from sums of features: against scikit-learn, and against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor
from torch.nn.functional import normalize

from dynammo.methods.anacp import target_means
from dynammo.methods.base import Task, TaskImages, Watch
from dynammo.methods.fecam import correlations
from dynammo.methods.layup import RIDGES, choose_ridge
from dynammo.methods.lda import shrunk
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, NOTHING, SECOND, configured, create, learn

ALL = FIRST.with_(SECOND)
AT_ONCE = Task(1, 0, 4, ALL, NOTHING)


def taught(name: str, **options: Any) -> tuple[Any, Tensor]:
    """The method after both tasks, and its features of all images."""
    method = create(name, configured(**{f"method_options__{name}": options} if options else {}))
    learn(method, 1)
    learn(method, 2)
    return method, extract_features(method.network, ALL.images)


@pytest.mark.parametrize("shrinkage", [None, 0.3])
def test_lda_is_scikit_learns(shrinkage: float | None) -> None:
    """Task by task what scikit-learn learns from all images at once."""
    method, features = taught("lda", shrinkage=shrinkage)
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto" if shrinkage is None else shrinkage, priors=[0.25] * 4
    ).fit(features.double().numpy(), ALL.labels.numpy())
    largest = float(method.covariance.max())  # features of other batches round differently
    np.testing.assert_allclose(
        method.covariance.numpy(), reference.covariance_, atol=1e-4 * largest
    )
    theirs = reference.predict_proba(features.double().numpy())
    ours = method.scores(features).probabilities.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert method.scores(features).predicted.tolist() == theirs.argmax(1).tolist()


def test_a_class_without_spread_is_refused() -> None:
    for covariance in (lambda x: shrunk(x, None), lambda x: correlations(x.T.cov(), 1.0, 1.0)):
        with pytest.raises(ValueError, match="at least 2 different images"):
            covariance(torch.ones(3, 4).double())


def test_slda_by_hand() -> None:
    """Two classes of two images, in two features, in their order: a a b b."""
    method = create("slda", configured(method_options__slda={"shrinkage": 0.5}))
    method.feature_size = 2
    method.means, method.scatter = torch.zeros(0, 2).double(), torch.zeros(2, 2).double()
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 6.0]]).double()
    labels = torch.tensor([0, 0, 1, 1])
    method.take(z, Task(1, 0, 2, TaskImages(ALL.images[:4], labels), NOTHING))
    assert method.means.tolist() == [[2.0, 0.0], [0.0, 4.0]]
    # The deviations from the means of the time: (1, 0), (2, 0), (0, 2), (0, 4), weighing 0, 1/2,
    # 2/3, 3/4; Sigma is a quarter of their sum.
    torch.testing.assert_close(method.scatter, torch.tensor([[2.0, 0], [0, 44 / 3]]).double())
    first, second = 0.5 * 0.5 + 0.5, 0.5 * 44 / 12 + 0.5
    expected = torch.tensor([[2 / first, 0.0], [0.0, 4 / second]])
    expected -= expected.mean(0)
    torch.testing.assert_close(method.weight, expected)
    bias = -torch.tensor([2 * 2 / first, 4 * 4 / second]) / 2
    torch.testing.assert_close(method.bias, bias - bias.mean())


def test_slda_learns_in_parts_what_it_learns_at_once() -> None:
    method, features = taught("slda")
    whole = create("slda", configured())
    whole.learn(AT_ONCE, Watch())
    for name in ("means", "counts", "scatter"):
        torch.testing.assert_close(
            getattr(method, name), getattr(whole, name), rtol=1e-4, atol=1e-5
        )
    assert method.scores(features).predicted.tolist() == ALL.labels.tolist()


def test_the_products_of_kldas_features_are_the_kernel() -> None:
    method = create("klda", configured(method_options__klda={"projection": 2000, "gamma": 0.05}))
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(5, method.feature_size, generator=generator)
    z = method.project(x)
    kernel = rbf_kernel(x.numpy(), gamma=0.05)
    assert 0.3 < kernel.min() < 0.6
    np.testing.assert_allclose((z @ z.T).numpy(), kernel, atol=0.08)


def test_klda_is_the_discriminant_of_its_features() -> None:
    method, features = taught("klda", projection=40, ridge=0.01)
    z = method.project(features).double().numpy()
    centred = z - np.stack([z[ALL.labels == c].mean(0) for c in range(4)])[ALL.labels]
    means = np.stack([z[ALL.labels == c].mean(0) for c in range(4)])
    precision = np.linalg.inv(centred.T @ centred / len(z) + 0.01 * np.eye(40))
    scores = z @ precision @ means.T - 0.5 * np.einsum("cd,de,ce->c", means, precision, means)
    expected = torch.from_numpy(scores).softmax(1)
    torch.testing.assert_close(method.scores(features).probabilities, expected, rtol=0, atol=1e-4)


def test_fecam_is_the_mahalanobis_distance_by_each_classs_correlations() -> None:
    method, features = taught("fecam")
    roots = features.double().sqrt()  # behind a ReLU: none is negative
    x = normalize(roots, dim=1).numpy()
    for label in range(4):
        own = features[ALL.labels == label].double()
        covariance = np.cov(own.sqrt().T.numpy())
        off = covariance[~np.eye(len(covariance), dtype=bool)].mean()
        covariance += np.diag(covariance).mean() * np.eye(len(covariance)) + off
        np.fill_diagonal(covariance, np.diag(covariance) - off)
        deviations = np.sqrt(np.diag(covariance))
        precision = np.linalg.pinv(covariance / np.outer(deviations, deviations), hermitian=True)
        mean = normalize(own.mean(0).sqrt(), dim=0).numpy()
        expected = [mahalanobis(row, mean, precision) ** 2 for row in x]
        found = method.distances(features)[:, label]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_correlations_by_hand() -> None:
    """Variances 1 and 3, covariance 1: + 2 on the diagonal, + 1 beside it."""
    found = correlations(torch.tensor([[1.0, 1.0], [1.0, 3.0]]), alpha1=1.0, alpha2=1.0)
    expected = 2 / (3 * 5) ** 0.5
    torch.testing.assert_close(found, torch.tensor([[1.0, expected], [expected, 1.0]]))


def test_layup_is_ridge_regression_on_all_images() -> None:
    method, features = taught("layup", ridge=0.3)
    reference = Ridge(alpha=0.3, fit_intercept=False, solver="svd")
    reference.fit(features.double().numpy(), np.eye(4)[ALL.labels.numpy()])
    np.testing.assert_allclose(method.head.T.numpy(), reference.coef_, rtol=1e-3, atol=1e-5)


def test_layups_ridge_fits_the_noise() -> None:
    """More noise, more ridge; and few images cannot tell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 20, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(20, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    chosen = [choose_ridge(x, y + amount * noise, seed=1) for amount in (0.0, 30.0)]
    assert chosen[0] == RIDGES[0] and chosen[1] >= 10
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        choose_ridge(x[:3], y[:3], seed=1)


def test_anacps_targets_by_hand() -> None:
    """Whitened means (3, 1), (3, -1): centred (0, 1), (0, -1), whose singular value is 2^1/2 and
    becomes 2^1/2 + 1. Mapped back, the first feature is half as long.
    """
    covariance = torch.diag(torch.tensor([0.25, 1.0])).double()
    means = torch.tensor([[1.5, 1.0], [1.5, -1.0]]).double()
    height = (2**0.5 + 1) / 2**0.5
    expected = normalize(torch.tensor([[1.5, height], [1.5, -height]]).double(), dim=1)
    torch.testing.assert_close(target_means(means, covariance), expected)
    torch.testing.assert_close(  # one class has nobody to be pulled away from
        target_means(means[:1], covariance), normalize(means[:1], dim=1)
    )


def test_anacp_pulls_features_onto_the_targets() -> None:
    """With as many random features as tell the images apart and hardly any ridge, exactly there."""
    method, features = taught("anacp", projection=60, ridge=1e-9, samples=5)
    x = normalize(features.double(), dim=1)
    covariance = 0.9 * method.scatter / 24
    covariance.diagonal().add_(0.1 * (method.scatter / 24).diagonal().mean())
    targets = target_means(method.means, covariance)[ALL.labels]
    torch.testing.assert_close(method.pull(x), targets, rtol=0, atol=0.02)


def test_fsa_trains_on_the_first_task_alone() -> None:
    config = configured(train__network_learning_rate=0.1)
    method, bare = create("fsa", config), create("lda", config)
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    learn(method, 1)
    after = {name: value.clone() for name, value in method.network.state_dict().items()}
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    learn(method, 2)
    for name, value in method.network.state_dict().items():
        assert torch.equal(value, after[name]), name
    bare.network.load_state_dict(after)  # what lda makes of the features that are there now
    learn(bare, 1)
    learn(bare, 2)
    torch.testing.assert_close(method.head(), {"weight": bare.weight, "bias": bare.bias})
