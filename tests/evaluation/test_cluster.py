"""A Dask cluster shares out a cohort, and its masks are those of one process."""

from __future__ import annotations

from pathlib import Path

import joblib
import pytest
from test_batch import cohort, save_network

from brats_helpers.evaluation.batch import predict_cases
from brats_helpers.evaluation.prediction_table import DONE


def test_a_dask_cluster_writes_the_masks_of_one_process(tmp_path: Path, capsys) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    data, checkpoint = cohort(tmp_path / "data", 4), save_network(tmp_path / "best.pt", 0)
    (data / "P03" / "P03_t1.nii.gz").write_bytes(b"damaged")
    alone = predict_cases([data], [checkpoint], tmp_path / "alone")
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                                   dashboard_address=None) as cluster,
          distributed.Client(cluster) as client, joblib.parallel_config("dask")):
        shared = predict_cases([data], [checkpoint], tmp_path / "shared")
        loads = client.run(lambda: __import__(
            "brats_helpers.evaluation.batch").evaluation.batch._ensemble_of_worker.cache_info())
        capsys.readouterr()
        again = predict_cases([data], [checkpoint], tmp_path / "shared")
    assert [row["status"] for row in shared] == [row["status"] for row in alone]
    assert [row["status"] for row in shared].count(DONE) == 3
    assert "3 mask(s) are there already" in capsys.readouterr().out
    assert [row["case"] for row in again] == [row["case"] for row in alone]
    assert all(info.misses <= 1 for info in loads.values())  # each worker loads the network once
    masks = sorted((tmp_path / "alone").glob("*.nii.gz"))
    assert len(masks) == 3
    for mask in masks:
        assert (tmp_path / "shared" / mask.name).read_bytes() == mask.read_bytes()
