"""A Space next to a released model: the page of :mod:`piccolo_st.demo` over some texts, pushed as a release is.

The Space carries the page's own files instead of requiring this package, so it runs whatever is published elsewhere,
and as it was tested. It loads the model from its repository by revision when it starts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from piccolo_st.config import to_yaml
from piccolo_st.errors import InputError, MissingPackage
from piccolo_st.modeling import find_leaks
from piccolo_st.releasing import Release, ReleaseError, ReleaseOptions, publish_folder

# What the page consists of; tests/demo/test_space.py runs it with nothing else of the package.
_PAGE_FILES = ("__init__.py", "_version.py", "demo/__init__.py", "demo/draw.py", "demo/page.py", "demo/search.py")

_APP = '''"""Search as you type with {model_id}; written by piccolo_st {version}."""

from pathlib import Path

from piccolo_st.demo.search import Searcher; from piccolo_st.demo.page import serve
from sentence_transformers import SentenceTransformer

texts = Path(__file__).with_name("corpus.txt").read_text(encoding="utf-8").strip().split("\\n")
model = SentenceTransformer("{model_id}", revision="{revision}")
serve(Searcher.of({{"{model_id}": model}}, texts))
'''


def space_files(model_id: str, texts: Sequence[str], revision: str = "main") -> dict[str, str]:
    """The files of the Space, path -> content.

    Args:
        model_id: the model's repository on the Hub.
        texts: what the page searches, one line each.
        revision: the model's branch or tag.

    Raises:
        InputError: a text is empty or has a line break.
        MissingPackage: gradio is not installed, whose version the Space names.
    """
    if bad := [text for text in texts if not text.strip() or "\n" in text]:
        raise InputError(f"the texts of a Space must be lines of a file and not empty, got {bad[0][:40]!r}")
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        raise MissingPackage("a Space, which names its version of gradio,", "gradio", "demo") from None
    name = model_id.split("/")[-1]
    settings = {
        "title": name,
        "emoji": "🔍",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [model_id],
        "short_description": f"Search as you type with {name}"[:60],
    }
    front = to_yaml(settings)
    text = (
        f"Search {len(texts):,} texts as you type with [{model_id}](https://huggingface.co/{model_id}): scores with "
        "and without its instructions, at any dimension, and a map.\n\n"
        "While the model is private, the Space needs a secret HF_TOKEN that may read it.\n"
    )
    # A local build of torch, such as 2.13.0+cpu, is not what an index offers under that name.
    needed = [f"{package}=={version(package).split('+')[0]}" for package in ("sentence-transformers", "torch")]
    package = Path(__file__).parent.parent
    return {
        "README.md": f"---\n{front}---\n\n# {name}\n\n{text}",
        "app.py": _APP.format(model_id=model_id, revision=revision, version=version("piccolo_st")),
        "requirements.txt": "".join(f"{line}\n" for line in [*needed, f"transformers=={version('transformers')}"]),
        "corpus.txt": "".join(f"{text}\n" for text in texts),
        **{f"piccolo_st/{path}": (package / path).read_text(encoding="utf-8") for path in _PAGE_FILES},
    }


def release_space(
    model_id: str,
    texts: Sequence[str],
    options: ReleaseOptions | None = None,
    *,
    space_id: str | None = None,
    model_revision: str = "main",
) -> Release:
    """Show what the Space of a model would change on the Hub and, with ``push``, publish it in one commit.

    Args:
        model_id: the model's repository on the Hub.
        texts: what the page searches.
        options: what to do; nothing is sent by default.
        space_id: the Space's repository; the model's own name by default.
        model_revision: the model's branch or tag that the Space loads.

    Raises:
        ReleaseError: a file holds a secret or a path of this machine, or the Hub refused or failed.
        InputError: as :func:`space_files` does.
    """
    files = space_files(model_id, texts, model_revision)
    with tempfile.TemporaryDirectory(prefix="piccolo_st_space_") as folder:
        for path, content in files.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(content, encoding="utf-8")
        if leaks := list(find_leaks(folder, list(files))):
            raise ReleaseError(f"the Space of {model_id} is not ready to be released: {'; '.join(leaks)}")
        options = options or ReleaseOptions()
        options = replace(options, message=options.message or f"Page of {model_id}")
        return publish_folder(Path(folder), sorted(files), space_id or model_id, options, repo_type="space")
