from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tinystories_hf.core.errors import UserError
from tinystories_hf.model.flops import training_flops_per_token
from tinystories_hf.study.cells import Study, cell_arguments, cell_flags, read_study

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def study(tmp_path: Path, **content: Any) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"base": "quickstart", **content}))
    return read_study(path)


def test_lists_are_axes_and_lists_of_lists_are_lists(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        settings={"toy_stories": 100},
        cells=[
            {"hidden_size": [64, 128], "num_layers": [2, 4], "seed": 1},
            {"num_layers": 1, "attention_types": ["global"]},
            {"num_layers": 2, "attention_types": [["global"], ["global", "local"]]},
        ],
    )
    assert len(found.cells) == 7
    assert found.cells[1].settings == {
        "toy_stories": 100, "hidden_size": 64, "num_layers": 4, "seed": 1,
    }  # fmt: skip
    assert found.cells[1].name == "hidden_size-64_num_layers-4_seed-1"
    types = [cell_arguments(found, cell).model.attention_types for cell in found.cells[4:]]
    assert types == [["global"], ["global"], ["global", "local"]]
    assert " --attention_types global local" in " ".join(cell_flags(found.cells[6]))


def test_steps_follow_from_tokens_or_operations(tmp_path: Path) -> None:
    cells = [{"tokens": 1_000_000}, {"flops": "1e12"}, {"max_steps": 7}, {"seed": 5}]
    found = study(tmp_path, cells=cells)
    arguments = [cell_arguments(found, cell) for cell in found.cells]
    assert arguments[0].training.max_steps == round(1_000_000 / (8 * 256))
    per_token = training_flops_per_token(arguments[1].model, 256)
    assert arguments[1].training.max_steps == round(1e12 / (8 * 256 * per_token))
    assert [each.training.max_steps for each in arguments[2:]] == [7, 1400]


def test_cells_without_a_rate_get_it_from_the_sweep(tmp_path: Path) -> None:
    sweep = {"hidden_size": [32, 64], "learning_rate": [1e-3, 1e-2], "max_steps": 5}
    cells = [{"hidden_size": 128}, {"hidden_size": 128, "learning_rate": 0.01}]
    found = study(tmp_path, learning_rate_sweep=sweep, cells=cells)
    assert [cell.is_sweep for cell in found.cells] == [True] * 4 + [False] * 2
    assert [cell.by_law for cell in found.cells] == [False] * 4 + [True, False]
    assert cell_arguments(found, found.cells[4], 0.25).training.learning_rate == 0.25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cells": [{"hiden_size": 64}]}, "hiden_size is not a setting of a run"),
        ({"cells": [{"output_dir": "x"}]}, "output_dir is decided by the study"),
        ({"cells": [{"seed": [1, 1]}]}, "the cell seed-1 occurs twice"),
        ({"cells": []}, "no cells"),
        ({"cell": [], "cells": [{}]}, "unknown cell; the keys are"),
        ({}, "needs `base`, a configuration, and `cells`"),
        ({"cells": [{"hidden_size": 65}]}, "the cell hidden_size-65: hidden_size 65 is not"),
        ({"cells": [{"tokens": 1, "flops": 2}]}, "give one of tokens, flops and max_steps"),
        ({"cells": [{"tokens": 1}]}, "tokens: 1 is less than a step, which takes 2048"),
        ({"cells": [{"tokens": "many"}]}, "tokens: expected a number"),
        ({"cells": ["seed"]}, "cells: expected `setting: value` lines"),
        (
            {"learning_rate_sweep": {"hidden_size": [8]}, "cells": [{}]},
            "learning_rate_sweep needs several values of learning_rate",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_it_starts(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        study(tmp_path, **content)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_project_can_run(path: Path) -> None:
    found = read_study(path)
    assert f"{len(found.cells)} runs" in path.read_text(encoding="utf-8")
