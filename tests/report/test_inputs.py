"""Records that the report does not describe."""

from dataclasses import replace

import pytest
from helper_bad_invocations import finish_course

from ddp_workbook.errors import InputError
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import RunRecord, record_paths
from ddp_workbook.report.inputs import load_inputs


def test_a_sharded_run_is_refused(tmp_path):
    finish_course(tmp_path)
    assert load_inputs(tmp_path).distributed.config.shard == "none"
    path = record_paths(tmp_path, "distributed")[0]
    run = load_record(RunRecord, path)
    save_record(run.model_copy(update={"config": replace(run.config, shard="full")}), path)
    with pytest.raises(InputError, match="is of a run with --shard full"):
        load_inputs(tmp_path)


def test_a_run_with_unequal_batches_is_refused(tmp_path):
    finish_course(tmp_path)
    path = record_paths(tmp_path, "distributed")[0]
    run = load_record(RunRecord, path)
    world = run.world.model_copy(update={"batch_sizes": [24, 40]})
    save_record(run.model_copy(update={"config": replace(run.config, balance="3:5"), "world": world}), path)
    with pytest.raises(InputError, match="is of a run with --balance 3:5"):
        load_inputs(tmp_path)
