"""model_main.py as a user runs it: its flags, exit codes, evaluation only, and being stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app, flags
from absl.testing import flagsaver

SCRIPT = Path(__file__).resolve().parents[1] / "model_main.py"
TRAIN_PATH = "train_input_reader.tf_record_input_reader.input_path[0]"
EVAL_PATH = "eval_input_reader[0].tf_record_input_reader.input_path[0]"


@pytest.fixture(scope="session")
def model_main():
    spec = importlib.util.spec_from_file_location("model_main", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(model_main):
    """Calls the script's main with flags, in this process; returns its exit code."""
    def call(*arguments: str) -> int:
        with flagsaver.flagsaver():
            flags.FLAGS(["model_main.py", *arguments])
            try:
                model_main.main(["model_main.py"])
            except SystemExit as error:
                return error.code
            return 0

    return call


@pytest.fixture
def paths(tiny_config, tmp_path) -> list[str]:
    """The two flags that every call needs, with a model_dir of the test's own."""
    return [f"--pipeline_config_path={tiny_config}", f"--model_dir={tmp_path / 'run'}"]


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--hparams_overrides=batch_size=4"], "write --set train_config.batch_size=4 and the like instead"),
    (["--use_tpu"], "TPUs are not supported; leave the flag out to train on GPU or CPU"),
    (["--tpu_name=a"], "TPUs are not supported"),
    (["--num_workers=2"], "--num_workers=2: only one worker is supported"),
    (["--eval_on_train_data"], "--eval_on_train_data needs --checkpoint_dir"),
    (["--eval_training_data"], "--eval_training_data needs --checkpoint_dir"),
    (["--run_once"], "--run_once needs --checkpoint_dir"),
    (["--checkpoint_dir=run", "--export_dir=out"], "use `od-finetune export`"),
])  # fmt: skip
def test_flags_that_cannot_be_obeyed(main, paths, tmp_path, arguments, expected):
    with pytest.raises(app.UsageError, match=re.escape(expected)):
        main(*paths, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", ["min_restored_fraction=1", "require=BoxPredictor_0"])
def test_a_start_with_less_than_demanded_exits_with_3_and_the_ledger(main, paths, tmp_path, capsys, override):
    """The quickstart's source has no such classes; everything else of the model is in it."""
    restore = "train_config.restore={skip: 'Conv2d_0/' skip: 'ClassPredictor'}"
    assert main(*paths, f"--set={restore}", f"--set=train_config.{override}") == 3
    said = capsys.readouterr().err
    assert f"Error: train_config.{override.partition('=')[0]}: " in said
    assert "Not in checkpoint" in said and "FeatureExtractor/MobilenetV1/Conv2d_0/weights" in said
    plan = json.loads((tmp_path / "run" / "restore_plan.json").read_text())
    assert plan["problem"] in said and plan["skip"] == ["Conv2d_0/", "ClassPredictor"]
    assert not list(tmp_path.glob("run/ckpt-*"))


def script(*arguments: str, code: str | None = None, **options) -> subprocess.Popen:
    """Starts the script, or `code` that does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", code, *arguments] if code else [sys.executable, str(SCRIPT), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_help_does_not_load_tensorflow():
    """It takes seconds; help answers at once."""
    code = (
        "import atexit, runpy, sys; sys.argv = ['model_main.py', '--help']; "
        "atexit.register(lambda: print('heavy', sorted({'tensorflow', 'tf_keras', 'numpy'} & set(sys.modules)))); "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    out, err = script(code=code).communicate(timeout=60)
    assert "--pipeline_config_path" in out and "--checkpoint_dir" in out
    assert out.splitlines()[-1] == "heavy []", err


def test_missing_flags_are_named():
    process = script("--model_dir=run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "--pipeline_config_path" in err and "Traceback" not in err


@pytest.mark.slow
def test_evaluation_only_gives_the_runs_own_results(main, trained, tiny_config, tmp_path):
    arguments = [f"--pipeline_config_path={tiny_config}", f"--checkpoint_dir={trained.model_dir}"]
    assert main(*arguments, f"--model_dir={tmp_path}", "--run_once") == 0
    found, expected = (
        json.loads((folder / "eval" / "results.json").read_text()) for folder in (tmp_path, trained.model_dir)
    )
    assert found["step"] == 2
    assert found["results"] == pytest.approx(expected["results"], abs=1e-5)
    assert (tmp_path / "eval" / "detections.png").stat().st_size > 1000
    assert not list(tmp_path.glob("ckpt-*"))


@pytest.mark.slow
def test_evaluation_on_training_data_ends_with_the_last_step(main, trained, tiny_config, tmp_path, eager, capsys):
    """Without --run_once: the config has two steps. Nor does it take an eval_input_reader."""
    assert main(
        f"--pipeline_config_path={tiny_config}", f"--checkpoint_dir={trained.model_dir}", f"--model_dir={tmp_path}",
        "--eval_on_train_data", "--sample_1_of_n_eval_on_train_examples=100", "--set", "eval_input_reader=",
    ) == 0  # fmt: skip
    results = json.loads((tmp_path / "eval_on_train" / "results.json").read_text())
    assert results["step"] == 2 and "DetectionBoxes_Precision/mAP" in results["results"]
    assert "Evaluation at step 2:" in capsys.readouterr().err


def test_evaluation_without_records_or_checkpoint(main, trained, tmp_path, paths, eager, capsys):
    assert main(*paths, f"--checkpoint_dir={trained.model_dir}", "--set", "eval_input_reader=") == 2
    assert "evaluation needs an eval_input_reader, but the config has none" in capsys.readouterr().err
    assert main(*paths, f"--checkpoint_dir={tmp_path}", "--run_once") == 2
    assert f"Error: There is no checkpoint in {tmp_path}" in capsys.readouterr().err


def test_bad_record_in_evaluation(main, trained, paths, broken_records, eager, capsys):
    path = broken_records(xmin=0.9)
    assert main(*paths, f"--checkpoint_dir={trained.model_dir}", "--run_once", f"--set={EVAL_PATH}={path}",
                "--sample_1_of_n_eval_examples=1") == 2
    err = capsys.readouterr().err
    assert f"Error: {path}:1 broken.png: box 0 (ymin, xmin, ymax, xmax) is [0.1, 0.9, 0.6, 0.7]" in err


def test_bad_record_in_training_ends_with_one_message(main, paths, broken_records, capsys):
    """Traced, as users run it: TensorFlow wraps the message in many lines of its own."""
    path = broken_records(encoded=b"no image")
    assert main(*paths, f"--set={TRAIN_PATH}={path}", "--set", "eval_input_reader=") == 2
    err = capsys.readouterr().err.rstrip()
    assert err.splitlines()[-1] == (
        f"Error: {path}:1 broken.png: image/encoded (8 bytes, image/format 'png') can't be decoded; expected a whole "
        "JPEG, PNG, GIF or BMP"
    )
    assert "Traceback" not in err and "node" not in err


def test_user_errors_exit_with_2(main, tmp_path, paths, capsys):
    assert main(f"--pipeline_config_path={tmp_path}/none.config", f"--model_dir={tmp_path}") == 2
    assert capsys.readouterr().err == (
        f"Error: {tmp_path}/none.config: no such file; give the path of a pipeline.config\n")
    assert main(*paths, "--set", "train_config.bach_size=4") == 2
    assert "did you mean 'batch_size'?" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert main(*paths, f"--export_dir={tmp_path / 'out'}") == 2  # before hours of training, not after
    assert f"{tmp_path / 'out'} holds file" in capsys.readouterr().err


def test_sigterm_saves_and_the_next_run_goes_on_from_there(main, paths, tmp_path, eager, capsys):
    quick = ["--set", "eval_input_reader=", "--set", "train_config.freeze_variables[0]=FeatureExtractor"]
    process = script(*paths, *quick, "--num_train_steps=100000", "--checkpoint_every_n=100000")
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 3/100000"):
            process.send_signal(signal.SIGTERM)
            break
    out, rest = process.communicate(timeout=120)
    text = "".join(said) + rest
    assert process.returncode == 143, text
    (index,) = (tmp_path / "run").glob("ckpt-*.index")
    step = int(index.stem.split("-")[1])
    assert step >= 3 and f"Stopped by signal 15; saved {tmp_path}/run/ckpt-{step}" in text
    assert main(*paths, *quick, f"--num_train_steps={step + 1}") == 0
    assert f"Continuing from {tmp_path}/run/ckpt-{step} at step {step}." in capsys.readouterr().err
    assert (tmp_path / "run" / f"ckpt-{step + 1}.index").exists()
