"""Reads what a model server reports in place of an answer, wherever it puts its codes and its sentences."""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Final

import orjson

from turnkeeper.model.dialect import (
    ALSO_CALLED,
    CODES,
    DEFINITE,
    REFUSAL,
    SENTENCES,
    SILENT,
    WARNED,
)
from turnkeeper.model.failure import Reason

_MOST_PARTS: Final = 500
"""Values of a body that are looked at."""
_DEEPEST: Final = 12
"""Levels of a body that are looked at; JSON inside a text is one more."""
_LONGEST_TEXT: Final = 4_000
"""Characters of one text that are looked at."""
_LONGEST_JSON: Final = 64 * 1024
"""Characters of a text that may be JSON itself."""
_MOST_TEXT: Final = 12_000
"""Characters of all texts that are looked at."""
_MOST_PLACES: Final = 20
"""Places of a text at which the name of one field is looked at."""
_LONGEST_WORD: Final = 100
"""Characters of a code that are looked at."""
_NEAR: Final = 120
"""Characters before and after the name of a field in which a text must refuse it."""
_LAST_CLIENT_STATUS: Final = 501
"""Statuses above it are of the way to the model: their text means nothing."""

_WORD_KEYS: Final = frozenset({"code", "type", "status", "reason", "error_type", "error_code", "errortype", "__type"})
_TEXT_KEYS: Final = frozenset(
    {"message", "msg", "detail", "error", "description", "title", "raw", "status_msg", "error_msg", "errormessage"}
    | {"error_description", "reason", "cause"}
)
_STATUS_KEYS: Final = frozenset({"code", "status", "status_code", "http_status_code", "statuscode"})
_ECHO_KEYS: Final = frozenset({"input", "ctx", "request", "headers", "url", "body", "messages", "prompt"})
"""Keys below which a server repeats what it was sent."""
_TAGS: Final = re.compile(r"<(script|style|head)\b.{0,5000}?</\1>|<[^<>]{0,500}>", re.DOTALL | re.IGNORECASE)
_TITLE: Final = re.compile(r"<title>(.{0,300}?)</title>", re.DOTALL | re.IGNORECASE)
_SECONDS: Final = re.compile(r"(\d{1,7}(?:\.\d{1,9})?)s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerError:
    """What a model server reported, as far as it is known."""

    texts: tuple[str, ...] = ()
    """Its sentences, the outermost first."""
    words: tuple[str, ...] = ()
    """Its codes, types and statuses in small letters."""
    paths: tuple[str, ...] = ()
    """The places in the request that it names as at fault, such as `stream_options.include_usage`."""
    status: int = 0
    """The HTTP status that the body names; 0 if it names none."""
    retry_after: timedelta | None = None
    """The pause that the body asks for."""

    @property
    def sentence(self) -> str:
        """Returns its sentences as one line; empty if it has none."""
        return " ".join(" / ".join(dict.fromkeys(self.texts)).split())

    def reason(self, status: int) -> Reason | None:
        """Returns why the call failed, by the sentences and the codes; None if they mean nothing."""
        for group in SENTENCES:
            if group.always and self._matches(group.pattern):
                return group.reason
        if codes := [CODES[word] for word in self.words if word in CODES]:
            return codes[0]
        if status in DEFINITE or status > _LAST_CLIENT_STATUS:
            return None
        return next((group.reason for group in SENTENCES if self._matches(group.pattern)), None)

    def refused(self, fields: Iterable[str]) -> tuple[str, ...]:
        """Returns which of these fields of the request the server refuses."""
        return tuple(field for field in sorted(fields) if self._refuses(field))

    def _matches(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(text) for text in self.texts)

    def _refuses(self, field: str) -> bool:
        """Returns True if the server refuses the field itself, not only its value.

        Of a field that can be left out, every complaint is a refusal.
        """
        can_go = field in SILENT or field in WARNED
        if can_go and any(_top(path) == field for path in self.paths):
            return True
        name = _name_of(field, below=can_go)
        places = ((match, text) for text in self.texts for match in islice(name.finditer(text), _MOST_PLACES))
        return any(_refused_near(match, text) for match, text in places) or (
            field in self.paths and self._matches(REFUSAL)
        )


def read(body: object) -> ServerError:
    """Returns what an error's body reports: a JSON value, or text that may hold one. Never raises."""
    reader = _Reader()
    reader.take(body if not isinstance(body, bytes) else body.decode(errors="replace"), key="error", depth=0)
    return ServerError(
        texts=tuple(reader.texts),
        words=tuple(reader.words),
        paths=tuple(reader.paths),
        status=reader.status,
        retry_after=reader.retry_after,
    )


def is_error(chunk: object) -> bool:
    """Returns True if a server that answers HTTP 200 reports an error by this value instead of an answer."""
    if isinstance(chunk, list):
        return bool(chunk) and all(isinstance(item, dict) and is_error(item) for item in chunk)
    if not isinstance(chunk, dict):
        return False
    if chunk.get("error") or chunk.get("object") == "error" or chunk.get("type") == "error":
        return True
    if chunk.get("choices"):
        return False
    base = chunk.get("base_resp")
    return bool(
        chunk.get("errors")
        or chunk.get("detail")
        or (isinstance(base, dict) and base.get("status_code"))
        or ((chunk.get("message") or chunk.get("msg")) and any(map(chunk.get, ("code", "status", "statusCode"))))
    )


class _Reader:
    """Collects the parts of a body. Bounded, so that no server can keep it busy."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.words: list[str] = []
        self.paths: list[str] = []
        self.status = 0
        self.retry_after: timedelta | None = None
        self._left = _MOST_PARTS
        self._room = _MOST_TEXT

    def take(self, value: object, *, key: str, depth: int) -> None:
        """Takes a value that stands under `key`."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return
        if isinstance(value, dict):
            self._take_table(value, depth=depth)
        elif isinstance(value, list):
            for item in value:
                self.take(item, key=key, depth=depth + 1)
        elif isinstance(value, str):
            self._take_text(value, key=key, depth=depth)
        elif isinstance(value, int) and key in _STATUS_KEYS and not self.status:
            self.status = value if 400 <= value < 600 else 0

    def _take_table(self, table: Mapping[object, object], *, depth: int) -> None:
        loc = table.get("loc")
        if isinstance(loc, list):  # of FastAPI
            self.paths.append(".".join(str(step) for step in loc[:8] if step != "body"))
        for name, value in table.items():
            key = str(name).lower()
            if key in ("param", "field") and isinstance(value, str):
                self.paths.append(value[:200])
            elif key == "retrydelay" and isinstance(value, str) and (seconds := _SECONDS.fullmatch(value)):  # of Google
                self.retry_after = timedelta(seconds=float(seconds[1]))
            elif key not in _ECHO_KEYS:
                self.take(value, key=key, depth=depth + 1)

    def _take_text(self, text: str, *, key: str, depth: int) -> None:
        if key in _WORD_KEYS:
            self.words.append(text[:_LONGEST_WORD].strip().lower())
            if re.fullmatch("[45][0-9][0-9]", text):
                self.status = self.status or int(text)
        if key not in _TEXT_KEYS or not text.strip() or self._room <= 0:
            return
        self._room -= len(text)
        inner = _json_in(text.strip())
        if inner is not None:
            self.take(inner, key=key, depth=depth + 1)
        else:
            self.texts.append(_plain(text[:_LONGEST_TEXT]).strip())


def _json_in(text: str) -> object | None:
    """Returns the JSON object or list that a text holds; None if it is other text."""
    if not text.startswith(("{", "[")) or len(text) > _LONGEST_JSON:
        return None
    try:
        inner: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return inner


def _plain(text: str) -> str:
    """Returns the text of a page in HTML, its title first; other text as it is."""
    if not re.match(r"\s*<(!doctype|html|head|body|center|h1)\b", text, re.IGNORECASE):
        return text
    title = _TITLE.search(text)
    parts = [title[1] if title else "", _TAGS.sub(" ", text)]
    return " ".join(html.unescape(" ".join(parts)).split())


def _name_of(field: str, *, below: bool) -> re.Pattern[str]:
    """Returns a pattern of the field's names. `below`: a name also counts with a path below it, such as `a.b`."""
    names = [re.escape(field).replace("_", "_?"), *ALSO_CALLED.get(field, ())]
    after = r"(?!\w)" if below else r"(?![\w\[]|\.\w)"
    return re.compile(rf"(?<!\w)(?:{'|'.join(names)}){after}", re.IGNORECASE)


def _refused_near(match: re.Match[str], text: str) -> bool:
    return REFUSAL.search(text[max(0, match.start() - _NEAR) : match.end() + _NEAR]) is not None


def _top(path: str) -> str:
    """Returns the field of the request that a path begins with."""
    return re.split(r"[.\[/]", path.removeprefix("body.").lstrip("#/$."), maxsplit=1)[0]
