"""What is installed: all of the package, and types that a user's mypy sees."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USES = """
import specrej

result = specrej.generate("Why?", reward=lambda prompt, texts: [0.0 for _ in texts], n=4)
text: {text} = result.text
for number, outcome in specrej.generate_batch(["Why?"]):
    print(number + 1, outcome if isinstance(outcome, specrej.SpecrejError) else outcome.reward)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(
        "hatchling", reason="hatchling is not installed: it comes with the extra dev"
    )
    directory = tmp_path_factory.mktemp("wheel")
    build = f"import hatchling.build; hatchling.build.build_wheel({str(directory)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    [path] = directory.iterdir()
    return path


def test_all_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = ROOT / "src"
    there = {
        str(path.relative_to(sources))
        for path in (sources / "specrej").rglob("*")
        if path.is_file()
    }
    assert packed == {name for name in there if "__pycache__" not in name}
    assert "specrej/py.typed" in packed


@pytest.mark.parametrize(("text", "code"), [("str", 0), ("int", 1)])
def test_mypy_sees_the_types_of_what_is_installed(
    wheel: Path, text: str, code: int, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sysconfig.get_path("purelib", "venv", paths))
    (tmp_path / "uses.py").write_text(USES.format(text=text))
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(python),
        "uses.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    assert ("Success" in done.stdout) == (code == 0)
    assert ("Incompatible types in assignment" in done.stdout) == (code == 1)
