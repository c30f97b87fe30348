"""When does it pay? Steps of every model at several batch sizes, serial and on several processes, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ddp_workbook.anatomy import WARM_UP_STEPS, dissect, facts, sweep
from ddp_workbook.benchmark import train
from ddp_workbook.config import TrainConfig
from ddp_workbook.costmodel import slowest
from ddp_workbook.datasets import load_dataset
from ddp_workbook.devices import available_cores, choose_device, choose_threads, describe_environment
from ddp_workbook.errors import InputError
from ddp_workbook.models import MODELS
from ddp_workbook.recipes import RECIPES
from ddp_workbook.team import Member, Team
from ddp_workbook.timings import SurveyPoint, SurveyRecord

STEPS = {"resnet50": 2}  # timed steps a round; the small networks' steps are short enough for more
SHORT_STEPS = 10


def settings(config: TrainConfig, model: str) -> TrainConfig:
    """The model's own recipe, on the data set and device of `config`."""
    recipe = next(recipe for recipe in RECIPES.values() if recipe.model == model)
    return replace(recipe, dataset=config.dataset, data_dir=config.data_dir, device=config.device, accumulate=1)


def survey(
    config: TrainConfig,
    processes: int,
    batch_sizes: Sequence[int],
    rounds: int,
    on_point: Callable[[SurveyPoint], None] = lambda _: None,
) -> SurveyRecord:
    """Every model at every batch size (images per process): `rounds` times serial and distributed steps, in turns."""
    device = choose_device(config.device, processes)
    threads = choose_threads(config.threads, processes)
    points = []
    images_there = len(load_dataset(config).train)
    fitting = [images for images in batch_sizes if images * processes <= images_there]
    if len(fitting) < 2:
        raise InputError(
            f"{images_there} training images leave fewer than two of the batch sizes {tuple(batch_sizes)} for "
            f"{processes} processes; choose smaller ones"
        )
    with (
        Team("all cores", config, 1, available_cores()) as alone,
        Team(f"{processes} processes", config, processes, threads) as together,
    ):
        for model in MODELS:
            for images in fitting:
                points.append(_point(settings(config, model), images, alone, together, rounds))
                on_point(points[-1])
                for team in (alone, together):
                    team.call(Member.forget)
        all_reduces = sweep(together)
    return SurveyRecord(
        dataset=config.dataset,
        environment=describe_environment(device),
        processes=processes,
        threads=threads,
        sweep=all_reduces,
        points=points,
    )


def _point(config: TrainConfig, images: int, alone: Team, together: Team, rounds: int) -> SurveyPoint:
    whole, shared = replace(config, batch_size=images * together.processes), replace(config, batch_size=images)
    steps = STEPS.get(config.model, SHORT_STEPS)
    parameters, _ = together.call(facts, shared)[0]
    alone.call(train, whole, False, WARM_UP_STEPS, None)
    serial, averaged, apart = [], [], []
    for number in range(rounds):
        [(seconds, _)] = alone.call(train, whole, False, steps, None)
        serial.append(seconds / steps)
        answers = together.call(dissect, shared, steps, WARM_UP_STEPS if number == 0 else 0)
        averaged += slowest([answer[0] for answer in answers]).tolist()
        apart += slowest([answer[1] for answer in answers]).tolist()
    return SurveyPoint(
        model=config.model,
        images=images,
        gradient_bytes=4 * parameters,
        buckets=len(answers[0][2].buckets),
        serial=serial,
        averaged=averaged,
        alone=apart,
    )
