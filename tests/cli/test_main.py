from __future__ import annotations

import argparse
import importlib
import logging
import subprocess
import sys

import pytest

import od_finetune
from od_finetune.cli import main as cli


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"od-finetune {od_finetune.__version__}\n"


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["lnit"], ["lint"], ["lint", "a", "b"]])
def test_calls_that_make_no_sense_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: od-finetune" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    module = importlib.import_module(f"od_finetune.cli.{name}")
    assert callable(module.add_arguments) and callable(module.run)
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert cli.COMMANDS[name] in capsys.readouterr().out


def test_user_errors_are_one_message_and_exit_code_2(capsys):
    flags = ["--pipeline_config_path=no/such.config", "--trained_checkpoint_prefix=a", "--output_directory=b"]
    assert cli.main(["export", *flags]) == 2
    err = capsys.readouterr().err
    assert err == "od-finetune export: no/such.config: no such file; give the path of a pipeline.config\n"


def test_log_lines_come_as_they_are_and_go_nowhere_afterwards(capsys, monkeypatch):
    logger = logging.getLogger("od_finetune.config.export")
    before = logging.getLogger("od_finetune").handlers[:]

    def run(options):
        logger.info("Moving averages replace 3 of 4 variables")
        return 0

    monkeypatch.setattr(importlib.import_module("od_finetune.cli.lint"), "run", run)
    assert cli.main(["lint", "any.config"]) == 0
    assert capsys.readouterr().err == "Moving averages replace 3 of 4 variables\n"
    assert logging.getLogger("od_finetune").handlers == before


def test_quick_lint_does_not_load_tensorflow(tmp_path):
    """It takes seconds; --quick answers at once. So does lint where it finds errors without."""
    config = tmp_path / "my.config"
    labels = tmp_path / "labels.pbtxt"
    labels.write_text("item { id: 1 name: 'cat' }")
    config.write_text(
        "model { ssd { num_classes: 2 image_resizer { fixed_shape_resizer { height: 0 } }\n"
        "feature_extractor { type: 'ssd_mobilenet_v1' } } }\n"
        f"train_input_reader {{ label_map_path: '{labels}' }}\n"
        "train_config { data_augmentation_options { random_horizontal_flip {} } }\n"
        "eval_config { metrics_set: 'coco_detection_metrics' }\n"
    )
    code = (
        "import sys; from od_finetune.cli.main import main; main(['lint', *sys.argv[1:]]); "
        "heavy = {'tensorflow', 'tf_keras', 'numpy'} & set(sys.modules); print('heavy', sorted(heavy))"
    )
    for more in (["--quick", "--set=model.ssd.image_resizer.fixed_shape_resizer.height=1"], []):
        command = [sys.executable, "-c", code, str(config), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ("fixed_shape_resizer.height: is 0" in done.stdout) == (not more)
        assert done.stdout.splitlines()[-1] == "heavy []"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """As `| head` does. What is written is only noticed at the end, where Python would complain once more."""
    config = tmp_path / "my.config"
    config.write_text("model { ssd { num_classes: 1 } }")
    command = [sys.executable, "-m", "od_finetune.cli.main", "lint", "--quick", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_ctrl_c_ends_with_the_shells_code(monkeypatch, capsys):
    def interrupted(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", lambda commands: argparse.ArgumentParser())
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda *_: argparse.Namespace(command="lint"))
    monkeypatch.setattr(cli, "_module", interrupted)
    assert cli.main(["lint"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
