"""The READMEs, executed: every command they and the recipes' YAML files tell, in a fresh clone and environment.

A command is run as it stands, in the clone, but for the time limit that README.md documents; one that cannot be run
here stands in EXCEPTIONS with its reason. The table at the end says how long each took.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.demo_pages import serving
from tests.helpers.hub_server import HubServer, User
from tests.readme_checks import RUNS, Place, Ran, Row, write_what_a_user_has
from tests.readme_commands import (
    COLLECTED,
    EXCEPTIONS,
    ROOT,
    Command,
    fill,
    hidden_in_prose,
    lines,
    of_markdown,
    of_yaml,
    told,
)

TOLD = told()
SECONDS_OF_TRAINING = "5"
TOKEN = "hf_OfTheUserWhoReadsTheReadme"
ADDED_HERE = ("PYTHON", "PYTEST", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_", "VIRTUAL_ENV")


def row_of(command: Command) -> Row | None:
    return next((row for row in RUNS if re.search(row.pattern, command.text)), None)


def is_run(command: Command) -> bool:
    return command.exception is None or re.search(COLLECTED, command.text) is not None


def story() -> list[Command]:
    """The commands that are run, in the order in which a user can run them."""
    found = [command for command in TOLD if is_run(command)]
    return sorted(found, key=lambda command: row.late if (row := row_of(command)) else 0)


def test_every_command_is_run_or_says_why_not() -> None:
    """A new command needs a row in RUNS (tests/readme_checks.py), or one in EXCEPTIONS (tests/readme_commands.py)."""
    missing = [command for command in TOLD if is_run(command) and row_of(command) is None]
    assert not missing, f"neither run nor excepted: {missing}"


def test_no_row_is_left_over() -> None:
    texts = [command.text for command in TOLD]
    unused = [pattern for pattern in EXCEPTIONS if not any(re.search(pattern, text) for text in texts)]
    assert not unused, f"exceptions of no command: {unused}"
    used = {row.pattern for command in story() if (row := row_of(command))}
    assert not (left := {row.pattern for row in RUNS} - used), f"checks of no command: {left}"


def test_tests_that_a_readme_names_are_collected() -> None:
    """What a row asks of them is that; run, they take minutes."""
    named = [command for command in story() if "pytest " in command.text and " tests/" in command.text]
    assert len(named) >= 8
    assert not [one.text for one in named if (row := row_of(one)) and "PYTEST_ADDOPTS" not in environment_of(one, row)]


def test_every_placeholder_is_filled() -> None:
    for command in story():
        words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command.filled))
        assert not [word for word in words if re.fullmatch(r"[A-Z][A-Z/_]+(\.\w+)?", word)], command.filled


def test_no_command_hides_in_a_sentence() -> None:
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        assert not hidden_in_prose(path.read_text(encoding="utf-8")), path.name


def test_what_is_left_to_the_steps_of_ci_is_there() -> None:
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\npytest -q\n" in steps and '\npytest -q -m "slow and not network"' in steps
    assert re.search(rf"\npytest .*-m network .*tests/{Path(__file__).name}", steps)


def test_commands_of_a_text() -> None:
    markdown = (
        "# A\n`not this` and `python recipes/a.py X` or `torchrun`\n"
        '```bash\npip install -e ".[a]" && pytest  # all\naccelerate launch a.py '
        '\\\n  --b "c # d"   # why\n# alone\n```\n'
        "```python\nprint(`python no.py`)\n```\nthen `A=1 pytest -m\nslow`."
    )
    assert list(of_markdown(markdown)) == [
        "python recipes/a.py X", 'pip install -e ".[a]"', "pytest", 'accelerate launch a.py --b "c # d"',
        "A=1 pytest -m slow",
    ]  # fmt: skip
    header = (
        "# What:\n#   accelerate launch a.py \\\n#     --b c\n# and python is a word\n#   python b.py  # x\na: 1 # c\n"
    )
    assert list(of_yaml(header)) == ["accelerate launch a.py --b c", "python b.py"]
    assert hidden_in_prose(header) == [] and len(hidden_in_prose("# Run python recipes/a.py\n")) == 1
    assert list(lines("a --b '#c' # d")) == ["a --b '#c'"]
    assert fill("x MODEL my.yaml other/MODEL MODELS") == "x runs/quickstart/model my_tasks/six.yaml other/MODEL MODELS"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Place]:
    """The clone and the empty environment; the commands' times are printed at the end."""
    folder = tmp_path_factory.mktemp("as-shipped")
    clone, venv = folder / "piccolo_st", folder / "venv"
    if subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], capture_output=True).returncode:
        ignored = shutil.ignore_patterns(".*cache", "__pycache__", "*.egg-info", "runs", "build", "dist", "*venv")
        shutil.copytree(ROOT, clone, ignore=ignored)
    for name in ("README.md", "recipes/README.md"):
        assert (clone / name).read_bytes() == (ROOT / name).read_bytes(), f"{name} is not committed"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    write_what_a_user_has(clone)
    with HubServer({TOKEN: User("me", orgs=("sensenova",))}) as hub:
        env = {key: value for key, value in os.environ.items() if not key.startswith(ADDED_HERE)}
        env |= {key: value for key, value in hub.environment(folder / "hf", TOKEN).items() if key.startswith("HF_")}
        env |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        paths = [part for part in env["PATH"].split(os.pathsep) if part != str(Path(sys.executable).parent)]
        env["PATH"] = os.pathsep.join([str(venv / "bin"), *paths])
        found = Place(clone, venv, hub, env)
        yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nseconds  command")
        for command, seconds in found.took.items():
            print(f"{'failed' if seconds is None else format(seconds, '.0f'):>7}  {command}")
        print(f"{sum(filter(None, found.took.values())):7.0f}  in all")


def execute(command: str, place: Place, seconds: int, cwd: Path | None = None, **env: str) -> Ran:
    """Run it in a shell, in a session of its own that ends with it; a failure shows the last lines."""
    log = place.clone.parent / "command.log"
    place.took[command] = None
    start = time.monotonic()
    with log.open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", command], cwd=cwd or place.clone, env={**place.env, **env}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code: int | str = shell.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = f"no end after {seconds} s"
        finally:
            end(shell)
    text = log.read_text(encoding="utf-8", errors="replace")
    assert code == 0, f"{command}\nended with {code}; its last lines:\n{last_lines(text)}"
    assert TOKEN not in text
    place.took[command] = time.monotonic() - start
    return Ran(text, place)


def last_lines(text: str) -> str:
    """The last 40 lines, of progress bars only how they ended."""
    return "\n".join(line.rpartition("\r")[2] for line in text.rstrip().split("\n")[-40:])


def end(shell: subprocess.Popen[bytes]) -> None:
    """End what still runs of its session: asked first, since a launcher's processes have sessions of their own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(shell.pid, how)
            shell.wait(timeout=30)


def visit(command: str, place: Place, seconds: int) -> Ran:
    """Start a page, ask for it once, stop it."""
    log = place.clone.parent / "page.log"
    place.took[command] = None
    start = time.monotonic()
    try:
        with serving(["bash", "-c", f"exec {command}"], place.clone, place.env, log, seconds) as url:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            shown = opener.open(url, timeout=60).read().decode()
    except AssertionError as error:
        raise AssertionError(f"{command}\n{error}; its last lines:\n{last_lines(log.read_text())}") from None
    assert "<html" in shown and "gradio" in shown
    place.took[command] = time.monotonic() - start
    return Ran(log.read_text(encoding="utf-8"), place)


def environment_of(command: Command, row: Row) -> dict[str, str]:
    """The time limit; and for tests, which the steps of CI run, that they are only collected."""
    if re.search(COLLECTED, command.text) is not None:
        return {"PYTEST_ADDOPTS": "--collect-only -q"}
    return {} if row.whole else {"PICCOLO_ST_MAX_SECONDS": SECONDS_OF_TRAINING}


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("command", story(), ids=lambda command: command.text)
def test_as_told(command: Command, place: Place) -> None:
    row = row_of(command)
    assert row is not None
    if row.serves:
        ran = visit(command.filled, place, row.seconds)
    else:
        ran = execute(command.filled, place, row.seconds, **environment_of(command, row))
    print(last_lines(ran.output))  # shown where the check fails
    row.check(ran)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1500)
def test_from_another_working_directory(place: Place, tmp_path: Path) -> None:
    """After the story, with a launcher's configuration and a recipe named by their paths."""
    launcher, recipe = place.clone / "recipes/accelerate/cpu_zero1.yaml", place.clone / "recipes/finetune.py"
    command = f"accelerate launch --config_file {launcher} {recipe} {place.clone}/recipes/configs/quickstart.yaml"
    limit = {"PICCOLO_ST_MAX_SECONDS": SECONDS_OF_TRAINING}
    execute(command, place, 600, cwd=tmp_path, **limit).says("DeepSpeed, 2 process", "held-out search")
    assert (tmp_path / "runs/quickstart/model/modules.json").is_file()
