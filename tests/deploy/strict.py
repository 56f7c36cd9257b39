"""Checks manifests strictly; run by the interpreter of build/deploy-tools: `strict.py VERSION MANIFESTS CRD…`.

Kubernetes' own kinds are checked with its schemas, others with the schemas of their definitions: unknown fields are
errors. Rules in CEL are not evaluated. Prints `KIND/NAME` for what is well and `error: …` for what is not.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

Schema = dict[str, Any]


def definitions(files: list[str]) -> dict[tuple[str, str], Schema]:
    """Returns the strict schema of each API version and kind that the files define."""
    return {
        (f"{definition['spec']['group']}/{version['name']}", definition["spec"]["names"]["kind"]): strict(
            version["schema"]["openAPIV3Schema"], is_root=True
        )
        for file in files
        for definition in yaml.safe_load_all(Path(file).read_text(encoding="utf-8"))
        if definition and definition.get("kind") == "CustomResourceDefinition"
        for version in definition["spec"]["versions"]
    }


def strict(schema: Any, *, is_root: bool = False) -> Any:
    """Returns a schema that refuses the fields it does not name, as a strict API server does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    changed = {
        name: {key: strict(value) for key, value in part.items()} if name == "properties" else strict(part)
        for name, part in schema.items()
        if name not in ("description", "default", "format")
    }
    if is_root:
        changed["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}
    closes = "properties" in schema and "additionalProperties" not in schema
    if closes and schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        changed["additionalProperties"] = False
    return changed


def problems(document: Schema, schemas: dict[tuple[str, str], Schema], version: str) -> Iterator[str]:
    """Yields what is wrong with a manifest."""
    schema = schemas.get((document["apiVersion"], document["kind"]))
    if schema is not None:
        for error in Draft202012Validator(schema).iter_errors(document):
            yield f"{error.json_path}: {error.message[:300]}"
        return
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"there is no schema of {document['apiVersion']} {document['kind']}"


def main(version: str, manifests: str, *files: str) -> int:
    schemas = definitions(list(files))
    keys: set[tuple[str, str]] = set()
    failed = False
    for document in filter(None, yaml.safe_load_all(Path(manifests).read_text(encoding="utf-8"))):
        key = (document["kind"], document["metadata"]["name"])
        wrong = list(problems(document, schemas, version))
        wrong += [f"{key} is there twice"] if key in keys else []
        keys.add(key)
        for problem in wrong:
            print(f"error: {'/'.join(key)}: {problem}")
            failed = True
        if not wrong:
            print("/".join(key))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
