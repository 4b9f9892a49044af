"""Every command that a user is told to type: taken out of the READMEs and the headers of the recipes' YAML files.

``told`` is all of them, ``story`` those that are run here, in order; ``EXCEPTIONS`` says why a command is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAMS = r"(?:[A-Z_]+=\S+ +)*(?:python|pytest|pip|accelerate launch|torchrun|srun) \S"

# What a user fills in, as the test's user does. my_* are written by the test, the models by earlier commands.
PLACEHOLDERS = {
    "MODEL": "runs/quickstart/model",
    "RERANKER": "runs/quickstart/model",  # an encoder with a head that was never trained
    "OTHER": "runs/pretrain-quickstart/model",
    "ROOT": "my_ROOT",
    "ORG/NAME": "sensenova/piccolo-quickstart-zh",
    "texts.txt": "my_texts.txt",
    "my.yaml": "my_tasks/six.yaml",
    "CONFIG": "finetune-large",
    "MIXTURE.yaml": "runs/zh/filter/mixture.yaml",
}

# pattern of a command as it is written -> why it is not run here
EXCEPTIONS = {
    r"^pytest$": "the test suite; a step of .ci/run",
    r"hfl/chinese-roberta-wwm-ext|intfloat/multilingual-e5-small": "downloads a checkpoint from the Hub",
    r"finetune (CONFIG|finetune-[a-z]\S+) --data\.mixture MIXTURE\.yaml$": ("downloads a checkpoint from the Hub"),
    r'^pip install "piccolo_st\[(excel|lora)\]"$': "from an index; the test installs the clone with every extra",
    r"faq\.csv|faq\.yaml|runs/faq": "of a real checkpoint; tests/recipes/test_own_data.py walks it from a small one",
    r"^python -m piccolo_st evaluate MODEL( --config \S+| --benchmark STS)?$": "downloads C-MTEB from the Hub",
    r"^python -m piccolo_st ablation": "minutes for each of dozens of runs",
    r"english": "packages of data that only this needs, and a checkpoint of one's own",
    r"^python -m tests\.benchmarks\.false_negatives ": "minutes, with a checkpoint of one's own",
    r"^python -m tests\.helpers\.kill_test$": "an hour of runs that are killed",
    r"^python -m tests\.soak ": "an hour of runs that are disturbed",
    r"recipes/accelerate/(zero1|multinode_zero1|ddp)\.yaml": "needs several GPUs",
    r"^CUDA_VISIBLE_DEVICES=0 ": "needs a GPU",
    r"^infinity_emb |^curl 127\.0\.0\.1:7997": "a server of another project, which needs packages of its own",
    r"^srun ": "needs a cluster",
    r"--executor\.kind slurm": "needs a cluster",
    r"datatrove\[ray\]": "brings Ray, which needs a cluster",
}
COLLECTED = r"^([A-Z_]+=\S+ )*pytest .*tests/"  # named tests take minutes, and the steps of .ci/run run them


@dataclass(frozen=True)
class Command:
    """A command as it is written, in one line, and the files that tell it."""

    text: str
    files: tuple[str, ...]

    @property
    def exception(self) -> str | None:
        """Why it is not run here, or None."""
        return next((why for pattern, why in EXCEPTIONS.items() if re.search(pattern, self.text)), None)

    @property
    def filled(self) -> str:
        """The command with what a user fills in."""
        return fill(self.text)


def fill(text: str) -> str:
    """``text`` with every placeholder replaced."""
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", value, text)
    return text


def without_comment(line: str) -> str:
    """The line up to a # that is outside quotes and begins a word."""
    found = re.match(r"""(?:"[^"]*"|'[^']*'|(?<=\S)#|[^"'#])*""", line)
    return (found[0] if found else line).strip()


def lines(block: str) -> Iterator[str]:
    """The commands of a block of shell: continuation lines joined, comments cut, ``a && b`` as two."""
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        for part in without_comment(line).split(" && "):
            if part.strip():
                yield part.strip()


def of_markdown(text: str) -> Iterator[str]:
    """The commands of a Markdown file, in order: those of its bash blocks, and those between backticks."""
    for block, span in re.findall(r"```bash\n(.*?)```|```\w*\n.*?```|`([^`]+)`", text, re.S):
        inline = " ".join(span.split())
        yield from lines(block)
        if re.match(PROGRAMS, inline):
            yield inline


def of_yaml(text: str) -> Iterator[str]:
    """The commands of a YAML file's comments, which are the lines indented by three spaces and more."""
    comments = "\n".join(re.findall(r"^#(.*)$", text, re.M))
    for line in re.sub(r"\s*\\\n\s*", " ", comments).splitlines():
        if re.match(rf"\s{{3,}}{PROGRAMS}", line):
            yield from lines(line)


def hidden_in_prose(text: str) -> list[str]:
    """The comment lines of a YAML file that have a command in the middle of a sentence, where nobody copies it."""
    started = re.compile(r"^#(?! {3,}).*\b(python (-m |recipes/)|accelerate launch|torchrun|srun |pip install)")
    return [line for line in text.splitlines() if started.search(line)]


def told(files: Iterable[Path] = ()) -> list[Command]:
    """Every command, once, in the order of the files: the READMEs, the YAML files."""
    recipes = ROOT / "recipes"
    found: dict[str, list[str]] = {}
    for path in files or [
        *(ROOT / "README.md", recipes / "README.md", recipes / "README.zh.md", recipes / "GUIDE.md"),
        *sorted([*recipes.glob("configs/*.yaml"), *recipes.glob("accelerate/*.yaml")]),
    ]:
        text = path.read_text(encoding="utf-8")
        for command in (of_markdown if path.suffix == ".md" else of_yaml)(text):
            found.setdefault(command, []).append(
                path.name if path.parent == ROOT else f"{path.parent.name}/{path.name}"
            )
    return [Command(text, tuple(dict.fromkeys(names))) for text, names in found.items()]
