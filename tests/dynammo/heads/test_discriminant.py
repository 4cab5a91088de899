import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import cross_entropy, linear

from dynammo.config import HeadConfig
from dynammo.heads import HEAD_RULES
from dynammo.heads.base import Evidence
from dynammo.heads.discriminant import (
    calibration_temperature,
    discriminant_head,
    estimated_means,
    linear_discriminant,
)
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import (
    ClassStatistics,
    Pooling,
    append_classes,
    drop_classes,
    every_fifth,
    measure_classes,
    remove_samples,
    shrunk_covariance,
)
from dynammo.state import State

ONE_VIEW = HeadConfig(shrinkage=0.2, flip=False)


def as_measured(statistics: ClassStatistics, shrinkage: float) -> State:
    """The textbook's: the means are those of the images."""
    return linear_discriminant(statistics.means, shrunk_covariance(statistics, shrinkage))


def data(seed: int, classes: int = 3, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(20 * classes) % classes
    means = torch.randn(classes, size, generator=generator)
    return means[labels] + torch.randn(len(labels), size, generator=generator), labels


@pytest.mark.parametrize("shrinkage", [0.1, 0.75, 1.0])
def test_it_is_scikit_learns_discriminant_with_equal_priors(shrinkage: float) -> None:
    """Equally frequent classes, so that both pool the covariance alike. scikit-learn's scores are
    the same up to a constant a sample, which no softmax sees.
    """
    features, labels = data(0)
    head = as_measured(measure_classes(features.unsqueeze(0), labels, 3), shrinkage)
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=shrinkage, priors=[1 / 3] * 3
    ).fit(features.double().numpy(), labels.numpy())
    ours = linear(features, head["weight"], head["bias"]).softmax(1)
    theirs = torch.from_numpy(reference.predict_proba(features.double().numpy())).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_classes_of_any_size_shape_the_covariance_alike_if_they_are_to() -> None:
    """scikit-learn pools the covariances of classes by their priors: here equal ones."""
    features, labels = data(0)
    few = torch.cat([torch.arange(30), (labels == 1).nonzero().flatten()]).unique()
    features, labels = features[few], labels[few]
    head = as_measured(measure_classes(features.unsqueeze(0), labels, 3, "classes"), 1e-9)
    samples = features.double().numpy()
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3)
    theirs = torch.from_numpy(reference.fit(samples, labels.numpy()).predict_proba(samples)).float()
    ours = linear(features, head["weight"], head["bias"]).softmax(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    by_sample = as_measured(measure_classes(features.unsqueeze(0), labels, 3), 1e-9)
    assert not torch.allclose(linear(features, **by_sample).softmax(1), theirs, atol=1e-3)


def test_full_shrinkage_is_the_nearest_mean() -> None:
    features, labels = data(1)
    statistics = measure_classes(features.unsqueeze(0), labels, 3)
    head = as_measured(statistics, 1.0)
    nearest = torch.cdist(features.double(), statistics.means).argmin(1)
    assert torch.equal(linear(features, head["weight"], head["bias"]).argmax(1), nearest)


def test_a_sample_a_class_is_enough() -> None:
    statistics = measure_classes(torch.eye(3).unsqueeze(0), torch.arange(3), 3)
    head = discriminant_head(statistics, ONE_VIEW)
    assert linear(torch.eye(3), head["weight"], head["bias"]).argmax(1).tolist() == [0, 1, 2]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_neither_the_number_of_views_nor_the_unit_changes_a_prediction(
    seed: int, unit: float
) -> None:
    features, labels = data(seed)
    once = measure_classes(features.unsqueeze(0), labels, 3)
    thrice = measure_classes(unit * features.expand(3, -1, -1), labels, 3)
    first = discriminant_head(once, ONE_VIEW)
    covariance = shrunk_covariance(thrice, ONE_VIEW.shrinkage)
    means, chance = estimated_means(thrice, covariance, views=3)
    second = linear_discriminant(means, covariance, chance)
    torch.testing.assert_close(
        linear(features, first["weight"], first["bias"]),
        linear(unit * features, second["weight"], second["bias"]),
        rtol=1e-3,
        atol=1e-3,
    )


def test_the_rule_uses_the_configured_shrinkage_and_a_temperature() -> None:
    features, labels = data(2)
    views = features.unsqueeze(0)
    normalised = power_normalise(views, 0.7)
    statistics = measure_classes(normalised, labels, 3)
    rule = HEAD_RULES["discriminant"]()
    evidence = Evidence(None, None, statistics, views, labels, [], 1)
    config = HeadConfig(shrinkage=0.3, power=0.7, flip=False)
    head = rule(evidence, config)
    temperature = calibration_temperature(statistics, normalised, labels, config)
    assert temperature != 1
    assert head["power"] == 0.7
    expected = discriminant_head(statistics, config)
    torch.testing.assert_close(head["weight"] * temperature, expected["weight"])
    torch.testing.assert_close(head["bias"] * temperature, expected["bias"])


def test_tasks_have_a_say_in_the_temperature_by_how_many_images_were_held_out() -> None:
    """Twelve of 60 images, six of 30, and none of classes of four."""
    rule, config = HEAD_RULES["discriminant"](), HeadConfig(shrinkage=0.3, power=1.0, flip=False)
    features, labels = data(2)

    def learnt(features: torch.Tensor, labels: torch.Tensor, before: State | None) -> State:
        statistics = measure_classes(power_normalise(features[None], 1.0), labels, 3)
        return rule(Evidence(None, None, statistics, features[None], labels, [], 1, before), config)

    def found(features: torch.Tensor, labels: torch.Tensor) -> float:
        views = power_normalise(features[None], 1.0)
        statistics = measure_classes(views, labels, 3)
        return calibration_temperature(statistics, views, labels, config)

    first = learnt(features, labels, None)
    expected = torch.tensor([12 * math.log(found(features, labels)), 12]).double()
    torch.testing.assert_close(first["temperatures"], expected)
    fewer = torch.arange(0, 30)
    second = learnt(features[fewer], labels[fewer], first)
    added = torch.tensor([6 * math.log(found(features[fewer], labels[fewer])), 6]).double()
    torch.testing.assert_close(second["temperatures"], expected + added)
    alone = learnt(features[fewer], labels[fewer], None)
    logs = [float(own["temperatures"][0] / own["temperatures"][1]) for own in (second, alone)]
    torch.testing.assert_close(
        second["weight"] * math.exp(logs[0]), alone["weight"] * math.exp(logs[1])
    )
    least = learnt(features[:12], labels[:12], second)  # four of each: nothing is held out
    assert torch.equal(least["temperatures"], second["temperatures"])


@pytest.mark.parametrize("name", HEAD_RULES)
def test_a_rule_says_what_it_lacks(name: str) -> None:
    rule = HEAD_RULES[name]()
    assert rule.evidence in ("exemplars", "statistics")
    with pytest.raises(ValueError, match=rule.evidence):
        rule(Evidence(None, None, None, None, None, [], 1), HeadConfig())


def test_the_temperature_mends_overconfidence() -> None:
    """Few samples, many dimensions: on new samples of these classes, the cross-entropy is lower
    with the temperature than without, and near the lowest that any temperature gives.
    """
    generator = torch.Generator().manual_seed(0)
    means = 0.4 * torch.randn(4, 60, generator=generator)
    labels = torch.arange(120) % 4

    def draw(targets: torch.Tensor) -> torch.Tensor:
        return means[targets] + torch.randn(len(targets), 60, generator=generator)

    features, targets = draw(labels).unsqueeze(0), torch.arange(2000) % 4
    statistics = measure_classes(features, labels, 4)
    head, fresh = discriminant_head(statistics, ONE_VIEW), draw(targets)
    logits = linear(fresh, head["weight"], head["bias"])

    def loss(temperature: float) -> float:
        return float(cross_entropy(logits / temperature, targets))

    temperature = calibration_temperature(statistics, features, labels, ONE_VIEW)
    best = min(loss(t) for t in torch.logspace(-1, 2, 100).tolist())
    assert temperature > 1.5
    assert loss(temperature) < loss(1.0) - 0.1
    assert loss(temperature) < best + 0.05


def test_a_rare_class_weighs_as_much_in_the_temperature_as_a_common_one() -> None:
    """On the images held out no temperature beside it has a lower mean of the classes' losses."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 100 + [1] * 20)
    features = torch.randn(120, 60, generator=generator) + 0.2 * labels.unsqueeze(1)
    statistics = measure_classes(features.unsqueeze(0), labels, 2)
    held = every_fifth(labels)
    out = measure_classes(features[held].unsqueeze(0), labels[held], 2)
    head = discriminant_head(remove_samples(statistics, out, [0, 1]), ONE_VIEW)
    logits = linear(features[held], head["weight"], head["bias"]).double()

    def loss(temperature: float) -> float:
        each = cross_entropy(logits / temperature, labels[held], reduction="none")
        return float(each[labels[held] == 0].mean() + each[labels[held] == 1].mean())

    found = calibration_temperature(statistics, features.unsqueeze(0), labels, ONE_VIEW)
    assert found > 1.03  # or the bound would have been the lowest
    assert loss(found) < min(loss(0.97 * found), loss(1.03 * found))


def test_images_that_are_all_right_make_it_no_surer() -> None:
    labels = torch.arange(20) % 2
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    features[:, 0] += 20 * labels
    views = features.unsqueeze(0)
    assert calibration_temperature(measure_classes(views, labels, 2), views, labels, ONE_VIEW) >= 1


@pytest.mark.parametrize("pooling", ["samples", "classes"])
def test_only_the_newest_classes_are_left_out(pooling: Pooling) -> None:
    """Old classes' images are gone: the temperature must not need them."""
    features, labels = data(3, classes=4)
    old, new = labels < 2, labels >= 2
    statistics = append_classes(
        measure_classes(features[old].unsqueeze(0), labels[old], 2, pooling),
        measure_classes(features[new].unsqueeze(0), labels[new] - 2, 2, pooling),
    )
    views = features[new].unsqueeze(0)
    assert calibration_temperature(statistics, views, labels[new], ONE_VIEW) > 0


def test_classes_too_small_to_leave_one_out_keep_their_temperature() -> None:
    features, labels = torch.eye(4).unsqueeze(0), torch.tensor([0, 0, 1, 1])
    statistics = measure_classes(features, labels, 2)
    assert calibration_temperature(statistics, features, labels, ONE_VIEW) == 1


def test_statistics_of_one_feature() -> None:
    statistics = ClassStatistics(
        torch.tensor([[0.0], [2.0]]).double(),
        torch.tensor([[4.0]]).double(),
        torch.tensor([2.0, 2.0]).double(),
    )
    head = as_measured(statistics, 0.5)
    # Variance 1: w = mean, b = -mean^2 / 2, less the means of both, 1 and -1.
    assert head["weight"].flatten().tolist() == [-1.0, 1.0]
    assert head["bias"].tolist() == [1.0, -1.0]


def uncentred(statistics: ClassStatistics, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """S^-1 mu_c and -1/2 mu_c^T S^-1 mu_c in float64, as textbooks have them."""
    covariance = statistics.covariance
    spread = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    shrunk = (1 - shrinkage) * covariance + shrinkage * spread
    weight = torch.linalg.solve(shrunk, statistics.means.T).T
    return weight, -0.5 * (weight * statistics.means).sum(1)


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.floats(1, 1000), st.floats(0.01, 1))
def test_centred_the_head_says_the_same_in_smaller_numbers(
    seed: int, apart: float, shrinkage: float
) -> None:
    """Classes far from the origin and near each other, as features that are positive are: the
    rounding of the textbook's head to float32 shows in probabilities, that of the centred one does
    not.
    """
    features, labels = data(seed, classes=4)
    features = features + apart
    statistics = measure_classes(features.unsqueeze(0), labels, 4)
    head = as_measured(statistics, shrinkage)
    weight, bias = uncentred(statistics, shrinkage)
    exact = linear(features.double(), weight, bias)
    centred = linear(features.double(), head["weight"].double(), head["bias"].double())
    # By the mean over the classes, which softmax does not see.
    assert (centred.norm(dim=1) <= 1e-5 + exact.norm(dim=1)).all()
    tolerance = 1e-6 * (10 + apart)  # float32 rounds w^T x and b, which cancel, to 6e-8 of each
    torch.testing.assert_close(centred.softmax(1), exact.softmax(1), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        head["weight"].sum(0), torch.zeros(5), rtol=0, atol=1e-6 * float(head["weight"].abs().sum())
    )


def test_float32_is_enough_where_features_vary_little() -> None:
    """Unit-length features with a large common part, which spread 10,000 times less in some
    directions than in others.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    scale = torch.logspace(-2, -4, 60)
    noise = (
        torch.randn(400, 60, generator=generator) + torch.randn(8, 60, generator=generator)[labels]
    )
    features = power_normalise(0.13 + noise * scale, 1.0)
    statistics = measure_classes(features.unsqueeze(0), labels, 8)
    head, (weight, bias) = as_measured(statistics, 0.05), uncentred(statistics, 0.05)
    exact = linear(features.double(), weight, bias)

    def error(weight: torch.Tensor, bias: torch.Tensor) -> float:
        logits = linear(features, weight.float(), bias.float())
        return float((logits.double().softmax(1) - exact.softmax(1)).abs().max())

    assert error(weight, bias) > 1e-4
    assert error(head["weight"], head["bias"]) < 1e-6
    assert head["bias"].abs().max() < 1e-3 * bias.abs().max()


def test_forgetting_leaves_the_temperature_alone() -> None:
    features, labels = data(5)
    rule = HEAD_RULES["discriminant"]()
    before = measure_classes(features.unsqueeze(0), labels, 3)
    now = drop_classes(before, [0, 2])
    expected = {name: value / 7 for name, value in discriminant_head(now, ONE_VIEW).items()}
    head = {name: value / 7 for name, value in discriminant_head(before, ONE_VIEW).items()}
    torch.testing.assert_close(rule.again(head, before, now, ONE_VIEW), expected)
    one = drop_classes(before, [1])
    alone = rule.again(discriminant_head(one, ONE_VIEW), one, one, ONE_VIEW)
    assert alone["weight"].abs().max() == 0 == alone["bias"][0]


def test_forgetting_scales_the_heads_of_earlier_versions_as_it_does_todays() -> None:
    """They are not centred, and their means are those of the images."""
    features, labels = data(5)
    before = measure_classes(features.unsqueeze(0), labels, 3)
    now = drop_classes(before, [0, 2])
    weight, bias = uncentred(before, ONE_VIEW.shrinkage)
    head = {"weight": weight.float() / 7, "bias": bias.float() / 7}
    after = HEAD_RULES["discriminant"]().again(head, before, now, ONE_VIEW)["weight"].norm()
    was, today = (discriminant_head(own, ONE_VIEW)["weight"].norm() for own in (before, now))
    earlier = (head["weight"] - head["weight"].mean(0)).norm()
    torch.testing.assert_close(after / earlier, today / was)


@pytest.mark.parametrize("few", [1, 2, 5])
def test_a_class_of_few_images_is_answered(few: int) -> None:
    """One class of few images and seven of a hundred, normal and equally far apart: with the means
    as measured it is hardly ever answered. On the whole nothing is lost by it.
    """
    generator = torch.Generator().manual_seed(few)
    means = torch.randn(8, 60, generator=generator).div(2)
    sizes = torch.tensor([few] + [100] * 7)

    def draw(labels: torch.Tensor) -> torch.Tensor:
        return means[labels] + torch.randn(len(labels), 60, generator=generator)

    labels, fresh = torch.arange(8).repeat_interleave(sizes), torch.arange(8).repeat(400)
    statistics, test = measure_classes(draw(labels)[None], labels, 8), draw(fresh)
    recalls = []
    for head in (as_measured(statistics, 0.2), discriminant_head(statistics, ONE_VIEW)):
        right = linear(test, head["weight"], head["bias"]).argmax(1) == fresh
        recalls.append(torch.stack([right[fresh == own].float().mean() for own in range(8)]))
    was, now = recalls
    assert now[0] > was[0] + 0.1
    assert now.mean() > was.mean()


def test_means_are_drawn_together_as_an_analysis_of_variance_says() -> None:
    """By hand: one feature, S = Sigma = 1, four images each of -2 and 2. F = (4 * 4 + 4 * 4) / 1,
    m = 4 / 31, k = 4 / (4 + 4 / 31) = 31 / 32 = 1 - 1 / F.
    """
    one, four = torch.eye(1).double(), torch.tensor([4.0, 4.0]).double()
    statistics = ClassStatistics(torch.tensor([[-2.0], [2.0]]).double(), 8 * one, four)
    means, chance = estimated_means(statistics, one, views=1)
    torch.testing.assert_close(means, statistics.means * 31 / 32)
    torch.testing.assert_close(chance, torch.full((2,), (31 / 32) ** 2 / 4).double())


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 40))
def test_equally_large_classes_gain_nothing_on_each_other(
    seed: int, classes: int, size: int
) -> None:
    """All means are drawn to theirs by the same share, which is James and Stein's, at most half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(size)
    features = torch.randn(1, classes * size, 4, generator=generator)
    statistics = measure_classes(features, labels, classes)
    covariance = shrunk_covariance(statistics, 0.5)
    means, chance = estimated_means(statistics, covariance, views=1)
    centre = statistics.means.mean(0)
    share = (means - centre).norm() / (statistics.means - centre).norm()
    assert 0.5 - 1e-9 <= share <= 1 + 1e-9
    torch.testing.assert_close(means - centre, share * (statistics.means - centre))
    torch.testing.assert_close(chance, chance[:1].expand(classes))


def test_a_class_without_images_and_classes_without_spread_have_means() -> None:
    """Forgetting leaves rows without images; an image a class has no spread."""
    features, labels = data(6)
    known = measure_classes(features.unsqueeze(0), labels, 3)
    counts = known.counts * torch.tensor([1.0, 0.0, 1.0])
    means, chance = estimated_means(
        known._replace(counts=counts), shrunk_covariance(known, 0.5), views=1
    )
    assert means.isfinite().all()
    assert chance[1] == 0 < chance[0]
    alone = measure_classes(torch.eye(3).unsqueeze(0), torch.arange(3), 3)
    means, chance = estimated_means(alone, shrunk_covariance(alone, 0.5), views=1)
    torch.testing.assert_close(means, alone.means)
    assert chance.tolist() == [0, 0, 0]
    alike = alone._replace(means=torch.ones(3, 3).double())
    means, chance = estimated_means(alike, shrunk_covariance(alike, 0.5), views=1)
    torch.testing.assert_close(means, alike.means)
