"""The guide's page of model servers has the table that the tests play."""

from tests.model_servers.table import PAGE, with_the_table


def test_the_page_has_the_table_as_it_is() -> None:
    """If it fails, `python -m tests.model_servers.table` writes the table anew."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_the_table(page)
