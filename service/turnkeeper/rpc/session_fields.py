"""What callers attach to a session: labels and metadata, checked."""

import json
from collections.abc import Mapping

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from turnkeeper.rpc import validation as rules

METADATA_BYTES = 16 * 1024
LABEL_CHARACTERS = 128


def labels_problem(labels: Mapping[str, str]) -> str:
    """What is wrong with them; empty when nothing is."""
    fits = all(key and max(len(key), len(value)) <= LABEL_CHARACTERS for key, value in labels.items())
    return "" if fits else f"has a key or value over {LABEL_CHARACTERS} characters, or an empty key"


def metadata_problem(metadata_json: str) -> str:
    """What is wrong with it as JSON text; empty when nothing is."""
    return f"is over {METADATA_BYTES} bytes as JSON" if len(metadata_json.encode()) > METADATA_BYTES else ""


def json_of(metadata: Struct, *, field: str = "metadata") -> str:
    """Raises InvalidRequest, which names `field`, for a number that JSON has no word for."""
    try:
        return json.dumps(json_format.MessageToDict(metadata), sort_keys=True, ensure_ascii=False)
    except ValueError:
        rules.refuse({field: "holds a number that JSON has no word for"})
