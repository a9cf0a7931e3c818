"""Build hooks: compile `protos/*.proto` into the package `od_finetune.protos`.

The project's metadata is in pyproject.toml. Generated files are never kept in git: a wheel gets them straight into its
build folder, an editable install (or `python setup.py build_protos`) gets them into `od_finetune/protos/`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "protos"
PACKAGE = Path("od_finetune", "protos")
INIT = '"""The config language, compiled from protos/*.proto by setup.py. Generated: do not edit."""\n'


def compile_protos(target_root: Path) -> list[Path]:
    """Compiles every proto into `target_root/od_finetune/protos` and returns the files written, `__init__.py` first.

    Files are replaced one by one by complete new ones, so a process that imports them meanwhile never reads half a
    file; modules whose proto is gone are removed.
    """
    import grpc_tools
    from grpc_tools import protoc

    names = sorted(path.name for path in SOURCES.glob("*.proto"))
    if not names:
        raise SystemExit(f"setup.py: no .proto files in {SOURCES}; the source tree is incomplete")
    target = target_root / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target_root) as scratch:
        arguments = [
            "protoc",
            f"-I{PACKAGE.as_posix()}={SOURCES}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={scratch}",
            *(f"{PACKAGE.as_posix()}/{name}" for name in names),
        ]
        if status := protoc.main(arguments):
            raise SystemExit(f"setup.py: protoc failed with status {status}")
        (Path(scratch) / PACKAGE / "__init__.py").write_text(INIT)
        outputs = ["__init__.py", *(name.replace(".proto", "_pb2.py") for name in names)]
        for name in outputs:
            os.replace(Path(scratch) / PACKAGE / name, target / name)
    for stale in set(target.glob("*.py")) - {target / name for name in outputs}:
        stale.unlink()
    return [target / name for name in outputs]


class BuildProtos(Command):
    """`python setup.py build_protos`: compile the protos into the source tree, for work from a checkout."""

    description = "compile protos/*.proto into od_finetune/protos"
    user_options: list = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        written = compile_protos(ROOT)
        print(f"compiled {len(written) - 1} protos into {written[0].parent}", file=sys.stderr)


class BuildPy(build_py):
    """`build_py` that adds the compiled protos to what it builds."""

    def run(self) -> None:
        super().run()
        # An editable install imports from the source tree, so that is where its protos have to be.
        in_place = getattr(self, "editable_mode", False)
        self._proto_files = compile_protos(ROOT if in_place else Path(self.build_lib))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [str(path) for path in getattr(self, "_proto_files", [])]


setup(
    # Left out because it is generated: a fresh clone has no such folder, and no build may pick up a stale one.
    packages=find_packages(include=["od_finetune", "od_finetune.*"], exclude=["od_finetune.protos"]),
    cmdclass={"build_protos": BuildProtos, "build_py": BuildPy},
)
