"""Studies of seeds: against simulations whose variances are known, and in words."""

import numpy as np
import pytest
from helper_plots import finding
from helper_seeds import count_study, make_study

from ddp_workbook.analysis import plots_seeds
from ddp_workbook.analysis.seeds import (
    chance_difference,
    images_deviation,
    mean_difference,
    read_seeds,
    seed_differences,
    spread,
)
from ddp_workbook.analysis.statistics import deviation_interval, mcnemar

SEEDS, IMAGES, STUDIES = 5, 400, 400
COVERED = 0.95 - 3 * np.sqrt(0.95 * 0.05 / STUDIES)  # at least, by the noise of so many studies


def draw_answers(draws, chances, seed_effect=0.0):
    """(SEEDS, images): each seed gets image i right with its chance; a seed's effect shifts all of its chances."""
    effects = seed_effect * draws.standard_normal((SEEDS, 1))
    return draws.random((SEEDS, len(chances))) < chances + effects


@pytest.fixture(scope="module", params=[0.0, 0.02], ids=["images alone", "and good and bad seeds"])
def simulated(request):
    """Studies on one test set; two processes are worse by 0.02 on every image. And the true deviation between seeds."""
    draws = np.random.default_rng(0)
    chances = draws.uniform(0.72, 0.92, IMAGES)
    studies = [
        make_study(draw_answers(draws, chances, request.param), draw_answers(draws, chances - 0.02, request.param))
        for _ in range(STUDIES)
    ]
    # the variance of a sum of independent images; an effect takes its square from the variance of each image
    variance = (np.sum(chances * (1 - chances)) / IMAGES - request.param**2) / IMAGES + request.param**2
    return studies, variance**0.5, request.param


def test_the_spread_between_seeds_is_the_known_one(simulated):
    studies, truth, _ = simulated
    found = [spread(study.accuracies("baseline")).deviation for study in studies]
    assert np.mean([one.value**2 for one in found]) == pytest.approx(truth**2, rel=0.12)
    assert np.mean([one.low <= truth <= one.high for one in found]) >= COVERED


def test_the_mean_difference_over_seeds_covers_the_truth(simulated):
    studies, _, _ = simulated
    found = [mean_difference(study) for study in studies]
    assert np.mean([one.low <= -0.02 <= one.high for one in found]) >= COVERED


def test_the_spread_of_the_test_set_is_that_of_other_images():
    """One network without luck: it has an image right or wrong. Only the choice of images changes its accuracy."""
    draws = np.random.default_rng(1)
    answers = draws.random((2000, IMAGES)) < 0.85
    truth = answers.mean(axis=1).std()
    found = [images_deviation(make_study(each[:2], each[:2]), "baseline") for each in answers.reshape(400, 5, -1)]
    assert np.mean(found) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(("seed_effect", "too_often"), [(0.0, False), (0.04, True)])
def test_mcnemar_takes_the_luck_of_seeds_for_a_difference_and_the_mean_over_seeds_does_not(seed_effect, too_often):
    """Both kinds of runs are equally good. Where seeds are good and bad, one pair of runs still "differs"."""
    draws = np.random.default_rng(2)
    chances = draws.uniform(0.75, 0.95, IMAGES)
    studies = [
        [draw_answers(draws, chances, seed_effect), draw_answers(draws, chances, seed_effect)] for _ in range(STUDIES)
    ]
    rejected = np.mean([mcnemar(*pair) < 0.05 for study in studies for pair in zip(*study, strict=True)])
    assert (rejected > 0.15) if too_often else (rejected < 0.06)
    found = [mean_difference(make_study(*study)) for study in studies]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= COVERED


def test_the_deviations_interval_covers_the_truth():
    found = map(deviation_interval, 3 * np.random.default_rng(3).standard_normal((2000, 3)))
    assert np.mean([one.low <= 3 <= one.high for one in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_seeds_alone_make_a_larger_difference_in_one_case_of_twenty(seeds):
    """Many studies of the same network twice; each says how far two more of its runs may be apart."""
    draws, images, chance = np.random.default_rng(4), 2000, 0.9
    beyond = []
    for _ in range(600):
        answers = draws.random((2, seeds, images)) < chance
        first, second = draws.binomial(images, chance, 2) / images
        beyond.append(abs(first - second) > chance_difference(make_study(*answers)))
    assert np.mean(beyond) == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 600) ** 0.5)


def test_the_numbers_of_a_small_study():
    study = count_study()
    found = spread(study.accuracies("baseline"))
    assert (found.mean, found.smallest, found.largest) == pytest.approx((0.92, 0.90, 0.94))
    assert found.deviation.value == pytest.approx(0.02)
    assert mean_difference(study).value == pytest.approx(0.01)
    assert [each.value for each in seed_differences(study)] == pytest.approx([0.01, 0.0, 0.02])


def test_the_sentences():
    text = read_seeds(count_study())
    for part in (
        "3 seeds, mean (range) of the test accuracy: one process 92.00 % (90.00 to 94.00), 2 processes 93.00 % (91.00 "
        "to 96.00).",
        "for one process, 2.65 [",
        "the choice of 100 test images (binomial): 2.71 and 2.55 points.",
        "2 processes minus one process, seed by seed: +1.00 [-1.48, +3.48] points",
        "it contains 0.",
        "p < 0.05 for 0 of 3 seeds.",
    ):
        assert part in text, part


def test_the_figure():
    figure = plots_seeds.seeds(count_study())
    assert finding(figure).startswith(
        "cnn-digits: the mean of 3 seeds shows no difference (+1.00 [-1.48, +3.48] points)"
    )
    above, below = figure.axes
    assert [label.get_text() for label in above.get_yticklabels()] == ["1 process", "2 processes"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["seed 0", "seed 1", "seed 2", "mean of seeds"]


def test_a_record_whose_accuracy_is_not_that_of_its_answers_is_refused():
    content = count_study().model_dump()
    content["pairs"][1]["baseline"]["test_accuracy"] = 0.5
    with pytest.raises(ValueError, match="test_accuracy must be the share"):
        type(count_study()).model_validate(content)
