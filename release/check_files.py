"""Check a source distribution and the wheel that was built from it, and give the wheel its platform's tag.

`make wheel` calls it: python release/check_files.py FROM TO
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

IN_SOURCES = [
    "CMakeLists.txt",
    "CONTRIBUTING.md",
    "DESIGN.md",
    "LICENSE",
    "Makefile",
    "constraints.txt",
    "csrc/run.cc",
    "docs/compiled.md",
    "pyproject.toml",
    "src/cello/engines/native/_native.pyi",
    "tests/cases.py",
    "tests/data/README.md",
]
IN_WHEEL = [
    "cello/__init__.py",
    "cello/py.typed",
    "cello/engines/native/_native.pyi",
    "cello/tasks/classify/predictor.py",
]
ROOMS = {"cello"}
"""What a wheel may put into site-packages."""

JUNK = re.compile(r"(^|/)(\.venv|\.git|\.github|\.ci|__pycache__|build|dist|site|runs|wheelhouse)/")
BINARY = re.compile(r"\.(so|pyd|dylib|o|a)$")


def main(source: Path, target: Path) -> None:
    """Check what is in `source`, and put it into `target` as it is published."""
    (sources,), (wheel,) = source.glob("*.tar.gz"), source.glob("*.whl")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(sources, target)
    is_pure = wheel.name.endswith("-none-any.whl")
    if sys.platform == "linux" and not is_pure:
        # It links to nothing but the C and the C++ library, so that nothing is copied into the wheel.
        run("auditwheel", "show", str(wheel))
        run("auditwheel", "repair", "--wheel-dir", str(target), str(wheel))
    else:
        shutil.copy(wheel, target)
    (wheel,) = target.glob("*.whl")
    if "-abi3-" in wheel.name:
        run("abi3audit", "--strict", "--report", str(wheel))
    run("twine", "check", "--strict", str(sources), str(wheel))
    run("check_wheel_contents", "--toplevel", ",".join(ROOMS), str(wheel))
    check_contents(sources, wheel, is_pure)
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
    tag = wheel.stem.rpartition("-")[2]
    print(f"The platform of this wheel: {tag}")
    if "manylinux" in tag and "manylinux_2_28" not in tag:
        print(
            "  It needs this machine's C library or a newer one; published wheels are manylinux_2_28."
        )


def check_contents(sources: Path, wheel: Path, is_pure: bool) -> None:
    """Refuse files that are missing, and files that do not belong there."""
    with tarfile.open(sources) as archive:
        written = [member.name.partition("/")[2] for member in archive if member.isfile()]
    with zipfile.ZipFile(wheel) as unpacked:
        installed = unpacked.namelist()
    binaries = [name for name in installed if BINARY.search(name)]
    wrong = [f"the source distribution lacks {name}" for name in IN_SOURCES if name not in written]
    wrong += [f"the wheel lacks {name}" for name in IN_WHEEL if name not in installed]
    wrong += [
        f"{name} does not belong there"
        for name in [*written, *installed]
        if JUNK.search(name) or (name in written and BINARY.search(name))
    ]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in installed):
        wrong.append("the wheel lacks the licence")
    if len(binaries) != (0 if is_pure else 1):
        wrong.append(f"the wheel has the binaries {binaries}")
    if wrong:
        sys.exit("\n".join(wrong))


def run(module: str, *arguments: str) -> None:
    """Run a tool of this environment, which may call others of it."""
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", module, *arguments]
    print("$", module, *arguments, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
