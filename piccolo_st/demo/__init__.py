"""A page to see a model search; a Space holds a copy of these files, so they need nothing else of the package.

search.py  a corpus embedded once by each model, with and without its instructions; scores, ranks, a map
draw.py    what was found, as a table and a map in HTML
page.py    the page: searches as one types (gradio)
corpus.py  where the texts come from (not in a Space, which has its texts in a file)
"""

from piccolo_st.demo.page import serve
from piccolo_st.demo.search import Searcher

__all__ = ["Searcher", "serve"]
