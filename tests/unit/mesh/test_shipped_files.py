"""The run passes only with the shipped files for Envoy: any other line is changed."""

from pathlib import Path

import pytest

from tests.mesh import shipped_files

VALUES = {"PORT": "8443", "SDS": "/etc/envoy/sds"}
MAIN = 'a listener: ${PORT}  # not ${…}\nroutes:\n  wait: {timeout: 130s}\nsds: "${SDS}/callers.yaml"\n'


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    (folder / "sds").mkdir(parents=True)
    (folder / "variables.env").write_text("# Where callers connect.\nPORT=443\nSDS=/sds\n")
    (folder / "envoy.yaml").write_text(MAIN)
    (folder / "sds" / "callers.yaml").write_text("port: ${PORT}\n")
    return folder


def test_the_documented_variables_are_filled_in(shipped: Path, tmp_path: Path) -> None:
    used = shipped_files.write(shipped, VALUES, to=tmp_path / "used")
    assert used.read_text() == MAIN.replace("${PORT}", "8443").replace("${SDS}", "/etc/envoy/sds")
    assert (used.parent / "sds" / "callers.yaml").read_text() == "port: 8443\n"
    assert shipped_files.differences(used, VALUES, shipped=shipped) == []


def test_a_changed_timeout_is_found(shipped: Path, tmp_path: Path) -> None:
    used = shipped_files.write(shipped, VALUES, to=tmp_path / "used")
    used.write_text(used.read_text().replace("130s", "20s"))
    assert shipped_files.differences(used, VALUES, shipped=shipped) == [
        "envoy.yaml: -  wait: {timeout: 130s}",
        "envoy.yaml: +  wait: {timeout: 20s}",
    ]


def test_another_value_and_a_missing_file_are_found(shipped: Path, tmp_path: Path) -> None:
    used = shipped_files.write(shipped, {**VALUES, "PORT": "9999"}, to=tmp_path / "used")
    (used.parent / "sds" / "callers.yaml").unlink()
    changed = shipped_files.differences(used, VALUES, shipped=shipped)
    assert [line.partition(": ")[0] for line in changed] == ["envoy.yaml", "envoy.yaml", "sds/callers.yaml"]


@pytest.mark.parametrize("values", [{"PORT": "1"}, {**VALUES, "TIMEOUT": "20s"}])
def test_only_the_documented_variables_have_values(shipped: Path, values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="missing or unknown"):
        shipped_files.filled(shipped, values)


def test_a_variable_that_is_not_documented_is_refused(shipped: Path) -> None:
    (shipped / "envoy.yaml").write_text("timeout: ${TIMEOUT}\n")
    with pytest.raises(ValueError, match=r"does not document .*TIMEOUT"):
        shipped_files.filled(shipped, VALUES)
