"""Open a page to see one model search, or two side by side: with and without instructions, at any dimension.

    python -m piccolo_st demo                                  # the quickstart's model and 5,000 definitions
    python -m piccolo_st demo MODEL [MODEL] --corpus PATH      # PATH: a text file, one text a line, or a BEIR folder
    python -m piccolo_st demo MODEL --limit 100000 --port 7861

A model is a directory or a repository on the Hub. The corpus is embedded once, then searched at every key pressed.
Needs pip install "piccolo_st[demo]".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from piccolo_st.config import OptionParser, read_value
from piccolo_st.errors import InputError


def parser() -> OptionParser:
    """The options of the page."""
    options = OptionParser(
        "python -m piccolo_st demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("models", nargs="*", default=["runs/quickstart/model"], help="one or two models")
    options.add_argument("--corpus", help="text file or BEIR folder; the quickstart's definitions by default")
    options.add_argument("--limit", type=int, default=5000, help="texts to search at most, evenly drawn from all")
    options.add_argument(
        "--query", nargs="+", help="queries to click at, the first searched at once; by default those of a BEIR folder"
    )
    options.add_argument(
        "--instructions", help="of models that bring none: a preset (piccolo, e5), or {query: ..., document: ...}"
    )
    options.add_argument("--host", help="address to listen at, 127.0.0.1 by default; 0.0.0.0 is every one")
    options.add_argument("--port", type=int, help="port, by default the first free one from 7860")
    return options


def main(arguments: Sequence[str]) -> None:
    """Embed the texts and serve the page until it is stopped."""
    options = parser().parse_args(arguments)
    if len(set(options.models)) != len(options.models) or len(options.models) > 2:
        raise InputError(f"the page must show one model or two different ones, got {', '.join(options.models)}")
    from piccolo_st.demo import Searcher, serve  # once the command line is understood: they take seconds
    from piccolo_st.demo.corpus import example_queries, read_corpus, thin_out
    from piccolo_st.evaluation import load_model
    from piccolo_st.modeling import Instructions, set_prompts

    every = read_corpus(options.corpus)
    texts = thin_out(every, options.limit)
    models = {name: load_model(name).model for name in options.models}
    if options.instructions is not None:
        instructions = Instructions.from_plain(read_value(options.instructions, "--instructions"), "--instructions")
        for model in models.values():
            if not any(model.prompts.values()):
                set_prompts(model, instructions)
    print(f"embedding {len(texts):,} of {len(every):,} texts (--limit) with {' and '.join(models)}", flush=True)
    queries = options.query or example_queries(options.corpus)
    try:
        serve(Searcher.of(models, texts, progress=True), (queries or [""])[0], options.host, options.port, queries)
    except ImportError as error:  # gradio; the page itself is published without this package's errors
        raise InputError(str(error)) from None
