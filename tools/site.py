"""A hook for mkdocs: links from docs/ to files of the tree become the names of these files."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text; [words](../tests/x.py) becomes words (`tests/x.py`), or one name where both are it."""
    return OUTSIDE.sub(lambda m: f"`{m[2]}`" if m[1] == m[2] else f"{m[1]} (`{m[2]}`)", markdown)
