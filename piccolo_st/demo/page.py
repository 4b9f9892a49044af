"""The page: a query, a slider of dimensions, and what they find; everything is drawn again at every key pressed.

It asks no other host for anything: fonts are the system's, nothing is reported, no public link is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from piccolo_st.demo import draw
from piccolo_st.demo.search import Searcher

if TYPE_CHECKING:
    from gradio import Blocks

TITLE = "向量检索 · Embedding search"
TOP = 10


def render(searcher: Searcher, query: str, dimension: int) -> tuple[str, str]:
    """The table and the maps of a query, in HTML; of an empty one only the maps."""
    first = {variant.model: place for place, variant in reversed(list(enumerate(searcher.variants)))}
    places = sorted(first.values())
    query = query.strip()
    if not query:
        maps = [draw.corpus_map(searcher.variants[place], dimension) for place in places]
        return "", "".join(maps)
    found = searcher.search(query, dimension, TOP)
    maps = []
    for place in places:
        best = sorted((hit for hit in found.hits if hit.ranks[place] <= TOP), key=lambda hit: hit.ranks[place])
        ranked = [hit.index for hit in best]
        maps.append(draw.corpus_map(searcher.variants[place], dimension, query, found.vectors[place], ranked))
    return draw.facts(searcher, found, dimension) + draw.table(searcher, found, TOP), "".join(maps)


def build_page(searcher: Searcher, query: str = "", examples: Sequence[str] = ()) -> Blocks:
    """The page as gradio blocks, with a query to begin with and others to click at.

    Raises:
        ImportError: gradio is missing; the message says what to install.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the page needs gradio; run: pip install "piccolo_st[demo]"') from error

    def update(query: str, dimension: float) -> tuple[str, str]:
        return render(searcher, query, int(dimension))

    whole = searcher.dimension
    least = min(8, whole)
    with gradio.Blocks(analytics_enabled=False, title=TITLE, fill_width=True) as page:
        gradio.Markdown(f"## {TITLE}")
        with gradio.Row():
            text = gradio.Textbox(
                query,
                label="查询 · Query",
                placeholder="输入即搜索 · type to search",
                scale=3,
                min_width=280,
                elem_id="query",
            )
            slider = gradio.Slider(
                least,
                whole,
                whole,
                step=1,
                label="维数 · Dimensions (MRL)",
                scale=2,
                min_width=280,
                elem_id="dimension",
            )
        if examples:
            gradio.Examples([[each] for each in examples], [text], label="例 · Examples", elem_id="examples")
        with gradio.Row():
            with gradio.Column(scale=len(searcher.variants) + 1, min_width=280):
                table = gradio.HTML(elem_id="found")
            with gradio.Column(scale=2, min_width=280):
                maps = gradio.HTML(elem_id="map")
        gradio.on(
            [text.change, slider.change, page.load],
            update,
            [text, slider],
            [table, maps],
            trigger_mode="always_last",  # while a search runs, only the last of the keys pressed waits
            show_progress="hidden",
            api_name="search",
        )
    return page


def serve(
    searcher: Searcher,
    query: str = "",
    host: str | None = None,
    port: int | None = None,
    examples: Sequence[str] = (),
) -> None:
    """Serve the page until it is stopped.

    Args:
        searcher: what to search.
        query: what the page searches for at first.
        host: address to listen at; gradio's GRADIO_SERVER_NAME or 127.0.0.1 by default.
        port: likewise GRADIO_SERVER_PORT, or the first free one from 7860.
        examples: queries to click at.
    """
    page = build_page(searcher, query, examples)
    import gradio

    fonts = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
    theme = gradio.themes.Default(primary_hue="emerald", font=fonts, font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=host, server_port=port, share=False, ssr_mode=False, css=draw.CSS, theme=theme, footer_links=[]
    )
