"""What the report says of the network and the optimizer that were trained."""

from dataclasses import replace

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from helper_course import change_config
from test_build import implementation_of, text_of

from ddp_workbook.recipes import RECIPES
from ddp_workbook.report import build
from ddp_workbook.report.build import build_report

pytestmark = pytest.mark.usefixtures("small_figures")


@pytest.fixture
def finished(tmp_path):
    """The records of a finished course."""
    finish_course(tmp_path)
    return tmp_path


WORDS = {  # about the optimizer, the layers and what each rank draws
    "mlp-mnist": ("Adam [", "hidden layers of", "draws its own dropout masks"),
    "cnn-mnist": ("Nesterov", "two convolutions", "draws its own dropout masks"),
    "vit-cifar10": ("AdamW [", "LayerNorm", "draws its own crops and flips"),
    "lstm-mnist": ("AdamW [", "LSTM layers", "the ranks draw no random numbers"),
}


@pytest.mark.parametrize(("recipe", "words"), WORDS.items())
def test_report_of_the_other_networks(finished, recipe, words):
    change_config(finished, RECIPES[recipe])
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "ResNet" not in text.split("A cost model")[0]
    assert "BatchNorm" not in text.split("A cost model")[0]
    assert "in the last layer" not in text  # these recipes have one learning rate
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("optimizer", "named", "others"),
    [("adam", "Adam", ["Nesterov"]), ("sgd", "Nesterov momentum 0.9", ["Adam"])],
)
def test_the_report_names_the_optimizer(finished, optimizer, named, others):
    change_config(finished, replace(RECIPES["resnet50-digits"], optimizer=optimizer))
    text = implementation_of(build_report(finished, ROOT / "report.toml"))
    assert named in text
    assert not [other for other in others if other in text]


def test_an_optimizer_that_the_report_does_not_know_is_printed_by_its_name(finished, monkeypatch):
    """Records allow no other yet: so the content that the text is made of is changed."""
    content = build._content

    def with_other_optimizer(*arguments):
        found = content(*arguments)
        return found | {"config": found["config"] | {"optimizer": "shampoo"}}

    monkeypatch.setattr(build, "_content", with_other_optimizer)
    text = implementation_of(build_report(finished, ROOT / "report.toml"))
    assert "the optimizer shampoo" in text
    assert not [name for name in ("Adam", "Nesterov") if name in text]
