from __future__ import annotations

import io
import json

import pytest

from od_finetune.cli import main as cli
from od_finetune.config import pipeline
from od_finetune.planning import probing


@pytest.fixture(scope="module")
def planned(tiny_config, tmp_path_factory):
    """One call with everything: (what the JSON says, the directory written)."""
    folder = tmp_path_factory.mktemp("plan")
    patch = pytest.MonkeyPatch()
    said = io.StringIO()
    patch.setattr("sys.stdout", said)
    assert cli.main(["plan", str(tiny_config), "--json", "--output_directory", str(folder)]) == 0
    patch.undo()
    return json.loads(said.getvalue()), folder


def test_both_plans_and_the_costs_are_said_and_written(planned):
    said, folder = planned
    assert said["restore"]["counts"]["restored"] > 100 and said["restore_missing"] is None
    assert said["freeze"]["frozen_parameters"] > 0
    for name, part in (("restore_plan", "restore"), ("freeze_plan", "freeze"), ("costs", "costs")):
        assert json.loads((folder / f"{name}.json").read_text()) == said[part]
    assert (folder / "costs.png").read_bytes().startswith(b"\x89PNG")
    depths = said["costs"]["depths"]
    assert depths[0]["freeze_through"] == "none" and depths[0]["relative"] == 1.0
    assert [depth["freeze_through"] for depth in depths if depth["configured"]] == ["Conv2d_5"]
    for size in ("relative", "activation_bytes", "gradient_bytes", "optimizer_bytes"):
        assert depths[-1][size] < depths[0][size]
    # Momentum has one slot; the moving average, which the config language keeps by default, is another copy.
    assert depths[0]["optimizer_bytes"] == 2 * depths[0]["gradient_bytes"]
    assert said["costs"]["suggestion"]["name"] in [depth["freeze_through"] for depth in depths]


def test_plans_without_costs_where_records_and_checkpoint_are_not_there(tiny_config, capsys):
    missing = ["--set", "train_config.fine_tune_checkpoint=no/such/model.ckpt"]
    missing += ["--set", "train_input_reader.tf_record_input_reader.input_path=no/such.record"]
    assert cli.main(["plan", str(tiny_config), "--no-costs", *missing]) == 0
    out = capsys.readouterr().out
    assert "Restore plan: none. no/such/model.ckpt: no checkpoint lies there." in out
    assert "Freeze plan:" in out and "What freezing saves" not in out


def test_a_restore_that_a_run_would_refuse_is_exit_code_1(tiny_config, capsys):
    full = ["--set", "train_config.fine_tune_checkpoint_type=full"]
    assert cli.main(["plan", str(tiny_config), "--no-costs", *full]) == 1
    assert "A run would stop here: " in capsys.readouterr().out


def test_a_damaged_checkpoint_is_exit_code_1(tiny_config, tmp_path, capsys):
    (tmp_path / "model.ckpt.index").write_bytes(b"cut")
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"short")
    damaged = ["--set", f"train_config.fine_tune_checkpoint={tmp_path}/model.ckpt"]
    assert cli.main(["plan", str(tiny_config), "--no-costs", *damaged]) == 1
    assert "Restore plan: none. " in capsys.readouterr().out


def test_kept_rows_are_in_the_plan_as_in_that_of_a_run(tiny_config, request, capsys):
    labels = request.config.rootpath / "configs" / "quickstart_data" / "source" / "label_map.pbtxt"
    transfer = ["--set", f'train_config.class_transfer={{source_label_map: "{labels}"}}']
    keep = ["--no-costs", "--set", "train_config.keep_classes={}"]
    assert cli.main(["plan", str(tiny_config), "--json", *transfer, *keep]) == 0
    assert json.loads(capsys.readouterr().out)["freeze"]["rows_frozen"]["classes"] == ["star", "ring"]
    assert cli.main(["plan", str(tiny_config), *transfer, *keep, "--set", "train_config.keep_classes.name=stra"]) == 2
    assert "train_config.keep_classes.name[0]" in capsys.readouterr().err
    assert cli.main(["plan", str(tiny_config), *keep, "--set", "train_config.keep_classes.name=star"]) == 1
    assert "would start from random numbers" in capsys.readouterr().out


def test_a_config_that_is_wrong_otherwise_is_refused(tiny_config, capsys):
    assert cli.main(["plan", str(tiny_config), "--set", "train_config.freeze_variables=no_such_layer"]) == 2
    assert "no_such_layer" in capsys.readouterr().err
    assert cli.main(["plan", str(tiny_config), "--set", "train_config.batch_size=0"]) == 2
    assert "batch_size: is 0" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1", "-3", "most"])
def test_number_of_depths_to_probe(value, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", "a.config", f"--probe={value}"])
    assert caught.value.code == 2
    assert "expected a number from 2 on, or 'all'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_process_that_measures(tiny_config):
    config = pipeline.to_text(pipeline.load(tiny_config))
    frozen = ["BoxPredictor_0/ClassPredictor/weights", "BoxPredictor_0/ClassPredictor/biases"]
    lines = [json.dumps({"config": config, "frozen": frozen}), "step", "step", "end"]
    answers = io.StringIO()
    probing.serve(io.StringIO("\n".join(lines) + "\n"), answers)
    ready, first, second, end = [json.loads(line.removeprefix("answer ")) for line in answers.getvalue().splitlines()]
    assert ready["trained"] > 50
    assert 0 < first["seconds"] < 60 and second["cpu_seconds"] > 0
    assert 100e6 < end["peak_bytes"] < 20e9


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(probing.sys, "executable", "/bin/false")
    with pytest.raises(probing.UserError, match=r"'layer_1' ended with exit code 1: [\s\S]*batch_size"):
        with probing._process("", [], "layer_1"):
            pass


@pytest.mark.slow
def test_probe(tiny_config, capsys):
    assert cli.main(["plan", str(tiny_config), "--probe=2", "--json"]) == 0
    depths = json.loads(capsys.readouterr().out)["costs"]["depths"]
    measured = [depth for depth in depths if depth["measured"]]
    assert [depth["freeze_through"] for depth in measured] == ["none", "Conv2d_5", depths[-1]["freeze_through"]]
    assert measured[0]["measured"]["relative"] == 1.0
    assert measured[-1]["measured"]["relative"] < 1.0
    assert measured[-1]["measured"]["peak_resident_bytes"] < measured[0]["measured"]["peak_resident_bytes"]
