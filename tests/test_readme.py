"""Every command line in README.md and docs/ is one that the real parsers take."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from od_finetune.cli.main import COMMANDS, build_parser
from od_finetune.config import freezing, pipeline

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Runs a script up to where its flags are parsed.
PARSE_ONLY = """
import argparse, runpy, sys
from absl import app, flags

def parse(self, *arguments, **options):
    original(self, *arguments, **options)
    sys.exit(0)

def run(main, argv=None, flags_parser=None, **_):
    if "--help" in sys.argv:  # which absl defines later
        sys.exit(0)
    rest = (flags_parser or flags.FLAGS)(sys.argv)[1:]
    sys.exit(f"unexpected arguments {rest}" if rest else 0)

original, argparse.ArgumentParser.parse_args, app.run = argparse.ArgumentParser.parse_args, parse, run
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])  # as for a script that is run
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in code blocks and in `code` within lines."""
    blocks = re.findall(r"^ *```(?:bash|sh)?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for part in (part for line in lines for part in re.split(r"&&|;|\|", line)):
        if re.match(r"\s*(od-finetune|(\S*/)?python3?) ", part):
            yield shlex.split(part, comments=True)


def found() -> list[list[str]]:
    every = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
    return [list(words) for words in dict.fromkeys(map(tuple, every))]


def config_blocks() -> list[str]:
    """The pieces of configs on all pages: unmarked code blocks that begin with a message of the pipeline."""
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^ *```\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    ]
    return [block for block in blocks if re.match(r"\s*(model|train_config|eval_config)\s*\{", block)]


CALLS = [words[1:] for words in found() if words[0] == "od-finetune"]
SCRIPTS = [words[1:] for words in found() if words[0] != "od-finetune" and words[1].endswith(".py")]


def one_every_day(calls: list[list[str]]) -> list:
    """Parameters of a test: of the main script the first call; the others, each of which loads TensorFlow, are slow."""
    first = next(words for words in calls if words[0] == "model_main.py")
    return [pytest.param(words, marks=[] if words is first else [pytest.mark.slow]) for words in calls]


def test_commands_are_found_in_blocks_and_lines():
    text = "a `od-finetune lint x` b\n```bash\npython3 -m venv a && a/bin/python b.py \\\n  --c=d  # why\n```\n"
    assert list(commands(text)) == [
        ["python3", "-m", "venv", "a"], ["a/bin/python", "b.py", "--c=d"], ["od-finetune", "lint", "x"],
    ]  # fmt: skip
    assert {words[0] for words in CALLS} == set(COMMANDS)
    assert "model_main.py" in {words[0] for words in SCRIPTS}


@pytest.mark.parametrize("block", config_blocks(), ids=lambda block: " ".join(block.split())[:60])
def test_pieces_of_configs_are_of_the_language(block):
    train_config = pipeline.parse(block).train_config
    freezing.freeze_request(train_config)
    assert train_config.ByteSize() or "train_config" not in block


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_od_finetune_takes(words, capsys):
    if len(words) == 1 or words[:2] == ["export", "checkpoint"] and len(words) < 5:  # talks about the command
        assert words[0] in COMMANDS
        return
    try:
        build_parser([words[0]]).parse_args(words)
    except SystemExit as exit:
        assert exit.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", one_every_day(SCRIPTS), ids=" ".join)
def test_script_takes(words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARSE_ONLY, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_flag_that_does_not_exist_is_refused():
    with pytest.raises(AssertionError, match="modle_dir"):
        test_script_takes(["model_main.py", "--pipeline_config_path=a", "--modle_dir=b"])
