"""Every row of the two tables can be used: a model has its builder, a data set its reader, a colour is a colour."""

import re
from dataclasses import replace

import pytest

from ddp_workbook.config import TrainConfig
from ddp_workbook.recipes import RECIPES
from ddp_workbook.report.build import HERE
from ddp_workbook.specs import DATASETS, MODELS
from ddp_workbook.training.cpu_layers import Dropout
from ddp_workbook.training.datasets import _READERS, DAMAGE_CHECKS
from ddp_workbook.training.models import BUILDERS, build_model


def test_every_model_has_a_builder_and_every_builder_a_model():
    assert set(BUILDERS) == set(MODELS)


def test_every_data_set_has_a_reader_and_every_reader_a_data_set():
    assert set(_READERS) == set(DATASETS)


def test_every_download_can_be_checked_for_damage():
    assert set(DAMAGE_CHECKS) == {name for name, spec in DATASETS.items() if spec.folder}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_facts_are_those_of_its_network(name):
    spec = MODELS[name]
    config = replace(TrainConfig(model=name, dataset="digits"), dropout=0.5 if spec.dropout else 0.0)
    modules = [type(module) for module in build_model(config, classes=10).modules()]
    assert (Dropout in modules) == spec.dropout
    assert any("BatchNorm" in kind.__name__ for kind in modules) == spec.batch_norm
    assert config.channels == (3 if spec.colour_images else 1)
    assert re.fullmatch("#[0-9A-Fa-f]{6}", spec.colour)
    assert min(spec.benchmark_steps, spec.sweep_steps) >= 1


@pytest.mark.parametrize("source", [spec.source for spec in (*DATASETS.values(), *MODELS.values()) if spec.source])
def test_a_source_is_in_the_reports_references(source):
    assert re.search(rf"^{source}:", (HERE / "references.yml").read_text(), re.MULTILINE)


def test_every_model_and_every_data_set_has_a_recipe():
    assert {config.model for config in RECIPES.values()} == set(MODELS)
    assert {config.dataset for config in RECIPES.values()} == set(DATASETS)
