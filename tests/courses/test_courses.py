"""The course of other networks, shortened: `make test-courses`. `make test` has that of a ViT."""

import pytest
from helper_whole_course import check_the_report_describes, run_whole_course, words_about_another_network


@pytest.fixture(scope="module", params=["resnet50", "lstm"])
def course(request, tmp_path_factory):
    """The name of the network, and the folder of its course on the embedded data set."""
    folder = tmp_path_factory.mktemp(request.param)
    run_whole_course(folder, f"{request.param}-digits")
    return request.param, folder


def test_it_is_about_its_own_network(course):
    model, folder = course
    if model == "resnet50":
        assert words_about_another_network(folder)  # so they are found where they are
    else:
        assert words_about_another_network(folder) == []
        check_the_report_describes(model, folder)
