"""Checks the labels and the metadata that callers attach to a session."""

import json
from collections.abc import Mapping

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from turnkeeper.rpc import validation

METADATA_BYTES = 16 * 1024
"""Bytes of a session's metadata as JSON text."""
WIRE_BYTES = 3 * METADATA_BYTES
"""Bytes of metadata in a request, at most: no value is more than 2.5 times as large there as it is as JSON."""
LABEL_CHARACTERS = 128
"""Characters of a label's key, and of its value."""


def labels_problem(labels: Mapping[str, str]) -> str:
    """Returns what is wrong with the labels, to follow the field's name in an error; an empty text if nothing is."""
    fits = all(key and max(len(key), len(value)) <= LABEL_CHARACTERS for key, value in labels.items())
    return "" if fits else f"has a key or value over {LABEL_CHARACTERS} characters, or an empty key"


def metadata_problem(metadata_json: str) -> str:
    """Returns what is wrong with the metadata, as `labels_problem`."""
    return f"is over {METADATA_BYTES} bytes as JSON" if len(metadata_json.encode()) > METADATA_BYTES else ""


def json_of(metadata: Struct, *, field: str = "metadata") -> str:
    """Returns the metadata as JSON text.

    Raises InvalidRequest, which names `field`, if it holds NaN or an infinity, or is certainly too large.
    """
    if metadata.ByteSize() > WIRE_BYTES:
        validation.refuse({field: f"is over {METADATA_BYTES} bytes as JSON"})
    try:
        return json.dumps(json_format.MessageToDict(metadata), sort_keys=True, ensure_ascii=False)
    except ValueError:
        validation.refuse({field: "holds NaN or an infinity; JSON has neither"})
