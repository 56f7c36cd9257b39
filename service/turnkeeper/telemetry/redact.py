"""Takes secrets out of text that is about to be written."""

import re
from collections.abc import Iterable

HIDDEN = "***"

_LONGEST_READ = 10_000
"""Characters of a text that are searched for secrets; the rest is dropped."""
_LONGEST_WRITTEN = 2_000
"""Characters of a text that are written, at most."""

_KNOWN_SHAPES = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)[^/\s@]*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b[a-z]{2}-[\w-]{16,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{5,}(?:\.[\w-]*){0,4}"), HIDDEN),
    (
        re.compile(
            r"((?:password|passwd|secret|token|api[_-]?key|authorization)[\"']?\s*[:=]\s*[\"']?)(?!bearer|basic)"
            r"[^\s\"',;&}]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)


class Redactor:
    """Hides the secrets that it is given, and what has the shape of one. Cuts long text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        text = text[:_LONGEST_READ]
        if self._known:
            text = self._known.sub(HIDDEN, text)
        for shape, instead in _KNOWN_SHAPES:
            text = shape.sub(instead, text)
        return text if len(text) <= _LONGEST_WRITTEN else f"{text[:_LONGEST_WRITTEN]}…"
