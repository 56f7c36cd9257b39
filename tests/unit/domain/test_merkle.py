"""Hash trees: the roots of RFC 6962's reference log, and proofs that hold for their own entry alone."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.domain import merkle

ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""Of the first one to eight entries, as Certificate Transparency's own tests have them."""


def leaves(count: int) -> list[bytes]:
    return [merkle.leaf_hash(b"%d" % number) for number in range(count)]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_roots_are_those_of_certificate_transparency(count: int) -> None:
    assert merkle.root([merkle.leaf_hash(entry) for entry in ENTRIES[:count]]).hex() == ROOTS[count - 1]


def test_the_root_of_nothing_is_the_hash_of_nothing() -> None:
    assert merkle.root([]) == sha256(b"").digest()


@given(st.integers(1, 200), st.data())
def test_a_proof_leads_to_the_root_from_its_own_place_alone(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    all_leaves = leaves(count)
    root, path = merkle.root(all_leaves), merkle.path(all_leaves, index)
    assert merkle.root_of_path(all_leaves[index], path, index=index, count=count) == root
    other = data.draw(st.integers(0, count - 1))
    if other != index:
        assert merkle.root_of_path(all_leaves[other], path, index=index, count=count) != root
        try:
            assert merkle.root_of_path(all_leaves[index], path, index=other, count=count) != root
        except ValueError:
            assert len(merkle.path(all_leaves, other)) != len(path)


@pytest.mark.parametrize(("index", "count"), [(-1, 3), (3, 3), (0, 0)])
def test_a_place_outside_of_the_list_has_no_proof(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        merkle.root_of_path(leaves(1)[0], [], index=index, count=count)


@pytest.mark.parametrize("change", [[], [b"x" * 32] * 3])
def test_a_proof_has_exactly_as_many_hashes_as_the_tree_is_deep(change: list[bytes]) -> None:
    with pytest.raises(ValueError, match="too"):
        merkle.root_of_path(leaves(4)[1], change, index=1, count=4)
