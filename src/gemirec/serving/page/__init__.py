"""The explorer page's files, as they are sent.

The page is static and asks its own server only; the policy in its headers has the browser hold it to that.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from gemirec.serving.http import Response

_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@cache
def file(name: str) -> Response:
    """Return a file of the page.

    Example:
        >>> file("index.html").content_type
        'text/html; charset=utf-8'
    """
    body = (resources.files(__name__) / name).read_bytes()
    kind = _KINDS[name.rpartition(".")[2]]
    return Response(body, content_type=f"{kind}; charset=utf-8", headers=_HEADERS)
