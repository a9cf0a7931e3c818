from __future__ import annotations

import json

import pytest

from od_finetune.cli import main as cli
from od_finetune.planning import variables

CHECKPOINT = "configs/quickstart_data/source/model.ckpt"


@pytest.fixture(scope="module")
def checkpoint(request):
    return str(request.config.rootpath / CHECKPOINT)


def call(capsys, *arguments) -> tuple[int, str]:
    code = cli.main(["variables", *arguments])
    return code, capsys.readouterr().out


def test_variables_of_a_config(tiny_config, capsys):
    code, out = call(capsys, str(tiny_config), "--json")
    said = json.loads(out)
    rows = {row["name"]: row for row in said["variables"]}
    assert code == 0 and len(rows) > 100
    head = rows["BoxPredictor_0/ClassPredictor/weights"]
    assert (head["part"], head["stage"], head["state"], head["multiplier"]) == ("head", "head", "trained", 3.0)
    assert head["restored"] == "shape differs (same name)"
    frozen = rows["FeatureExtractor/MobilenetV1/Conv2d_0/weights"]
    assert (frozen["part"], frozen["stage"], frozen["state"], frozen["multiplier"]) == (
        "backbone", "Conv2d_0", "frozen", 0.0,
    )  # fmt: skip
    assert frozen["decided_by"] == "freeze_variables: MobilenetV1/Conv2d_[0-5](_|/)"
    assert frozen["source"] == frozen["name"] and frozen["restored"].startswith("restored")
    assert frozen["shape"] == [3, 3, 3, 8] and frozen["parameters"] == 216
    assert frozen["aliases"][0] == "feature_extractor/mobilenet_v1/conv2d_0/weights" and len(frozen["aliases"]) == 2
    assert "TF1 name-based checkpoint" in said["source"]


def test_grep_searches_other_spellings_and_the_total_counts_what_is_shown(tiny_config, capsys):
    code, out = call(capsys, str(tiny_config), "--grep", "feature_extractor/.*conv2d_0/batch_norm", "--long")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0].rpartition("/")[2] for line in lines[1:5]] == [
        "gamma", "beta", "moving_mean", "moving_variance",
    ]  # fmt: skip
    assert "feature_extractor/mobilenet_v1/conv2d_0/batch_norm/gamma" in lines[1]
    assert lines[5].startswith("4 of ") and lines[5].endswith("variables with 32 parameters; 0 with 0 train")


def test_a_checkpoint_that_is_not_there_is_said(tiny_config, capsys):
    gone = ["--set", "train_config.fine_tune_checkpoint=no/such.ckpt", "--grep", "ClassPredictor"]
    code, out = call(capsys, str(tiny_config), *gone)
    assert code == 0 and "BoxPredictor_0/ClassPredictor/biases" in out
    assert "No sources: no/such.ckpt: no checkpoint lies there." in out
    code, out = call(capsys, str(tiny_config), "--no-restore", "--grep", "ClassPredictor")
    assert code == 0 and "No sources: not looked for" in out


def test_variables_of_a_checkpoint(checkpoint, capsys):
    code, out = call(capsys, checkpoint, "--grep", "class_predictor/biases")
    assert code == 0
    assert "BoxPredictor_0/ClassPredictor/biases  [21]" in out and "weight  float32" in out
    assert "6 of 199 entries: 6 weights with 231 parameters, 0 others" in out
    assert "TF1 name-based checkpoint" in out


def test_entries_that_are_no_weights_are_told_apart(trained, capsys):
    code, out = call(capsys, str(trained.model_dir), "--json")
    rows = json.loads(out)["variables"]
    other = [row for row in rows if not row["weight"]]
    assert code == 0 and any("momentum" in row["name"] for row in other)
    assert "BoxPredictor_0/ClassPredictor/weights" in [row["name"] for row in rows if row["weight"]]


def test_nothing_that_matches_is_exit_code_1_with_the_nearest_names(checkpoint, capsys):
    assert cli.main(["variables", checkpoint, "--json", "--grep", "ClassPredicter"]) == 1
    out, err = capsys.readouterr()
    assert "nothing matches 'ClassPredicter'" in err and "BoxPredictor_0/ClassPredictor" in err
    assert out == ""  # no text where JSON is expected


@pytest.mark.parametrize("flag", ["--set=train_config.batch_size=1", "--no-restore", "--allow_unhonoured"])
def test_flags_of_a_config_are_refused_for_a_checkpoint(checkpoint, capsys, flag):
    assert cli.main(["variables", checkpoint, flag]) == 2
    assert f"{flag.split('=')[0]} is for a config" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, is_config",
    [
        (b"# mine\n\nmodel {\n  ssd { num_classes: oops\n", True),
        (b"train_config: { batch_size: 3 }", True),
        (b'model_checkpoint_path: "model.ckpt-3"\n', False),
        (b'{"modelTopology": {"model {": 1}}', False),
        (b"\x80\x02}q\x00model {\n\nmodel {", False),
        (b"", False),
    ],
)
def test_a_config_is_told_by_what_it_says(tmp_path, content, is_config):
    path = tmp_path / "file.any"
    path.write_bytes(content)
    assert variables.looks_like_config(str(path)) == is_config


def test_neither_config_nor_checkpoint(tmp_path, capsys):
    path = tmp_path / "notes.config"
    path.write_text("buy milk")
    assert cli.main(["variables", str(path)]) == 2
    err = capsys.readouterr().err
    assert "not a checkpoint that can be read" in err and "Nor is it a pipeline.config" in err
    assert cli.main(["variables", str(tmp_path / "none")]) == 2
    assert "no checkpoint lies there" in capsys.readouterr().err


def test_a_config_with_an_error_is_reported_as_one(tmp_path, capsys):
    path = tmp_path / "my.config"
    path.write_text("model {\n  sdd { }\n}\n")
    assert cli.main(["variables", str(path)]) == 2
    assert "has no field 'sdd'" in capsys.readouterr().err
