"""A whole course, shortened: four notebooks and the report of one network; and what they may not say of it."""

import re
import shutil

import nbformat
from conftest import ROOT
from pypdf import PdfReader

from ddp_workbook.course.runner import COURSE, run_course
from ddp_workbook.specs import MODELS

FEW = {"EPOCHS": 1, "PAIRS": 4, "ROUNDS": 2, "BATCHES": (8, 16), "BATCH_ROUNDS": 2}
OF_RESNET = "ResNet|BatchNorm|Nesterov"  # what a ViT, an LSTM and their recipes do not have


def run_whole_course(folder, recipe):
    """In a copy of a reader's files: one epoch, few measurements."""
    for name in (*COURSE, "distributed_train.py", "report.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "examples", folder / "examples")
    run_course(folder, folder / "out", {"RECIPE": recipe} | FEW)


def words_about_another_network(folder):
    """Lines printed in the cells, but for the sweep and %%ranks: other networks are there on purpose."""
    found = []
    for name in COURSE[1:]:
        for cell in nbformat.read(folder / "out" / name, as_version=4).cells:
            texts = [output.get("text", "") for output in cell.get("outputs", []) if output.output_type == "stream"]
            if not re.search("sweep|checks|%%ranks|# NEW", cell.source):
                found += re.findall(f".*(?:{OF_RESNET}).*", "".join(texts))
    return found


def check_the_report_describes(model, folder):
    """`model` is "vit" or "lstm"."""
    pages = PdfReader(folder / "results" / f"{model}-digits" / "report.pdf").pages
    text = re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pages))
    own = text.split("A cost model")[0]
    assert re.findall(f".{{40}}(?:{OF_RESNET}).{{40}}", own) == []
    assert MODELS[model].title in own
    assert {"vit": "LayerNorm", "lstm": "LSTM layers"}[model] in own
