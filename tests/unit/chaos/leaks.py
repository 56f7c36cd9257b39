"""Damages to the small run by which one tenant sees what is another's."""

from dataclasses import replace

from tests.chaos.history import Prompt
from tests.chaos.spies import ABSENT, EMPTY, REFUSED
from tests.chaos.tenants import label
from tests.unit.chaos.runs import OTHER, TENANT, Run


def a_foreign_session_is_found(run: Run) -> None:
    run.tried("GetSession", {"session": "birch/s9", "foreign": ABSENT}, session="birch/s9")


def a_foreign_cursor_is_taken(run: Run) -> None:
    run.tried("WatchEvents", {"foreign": REFUSED})


def an_answer_has_a_text_of_another_tenant(run: Run) -> None:
    run.tried("ListSessions", {"foreign": EMPTY}, leaked=True)


def a_reader_was_given_a_text_of_another_tenant(run: Run) -> None:
    run.chains[0] = replace(run.chains[0], leaked=True)


def a_text_of_another_tenant_is_stored(run: Run) -> None:
    run.find("session_created").session_created.agent = label(OTHER, "u-1")
    run.chains.clear()


def the_model_was_given_texts_of_two_tenants(run: Run) -> None:
    contents = [f"say {label(tenant, 'u-1')}: ok" for tenant in (TENANT, OTHER)]
    run.prompts.append(Prompt(messages=[{"role": "user", "content": content} for content in contents]))


LEAKS = (
    a_foreign_session_is_found,
    a_foreign_cursor_is_taken,
    an_answer_has_a_text_of_another_tenant,
    a_reader_was_given_a_text_of_another_tenant,
    a_text_of_another_tenant_is_stored,
    the_model_was_given_texts_of_two_tenants,
)
