"""What a tool's own server refused for good counts for nothing, and what it did not refuse does."""

from tests.chaos.checker import judge
from tests.unit.chaos.ends_of_calls import it_starts_again_once_its_server_has_refused_the_start
from tests.unit.chaos.runs import Run, clean


def _broken(run: Run) -> set[str]:
    return {name for name, finding in judge(run.history()).items() if finding.violations}


def test_a_start_that_was_refused_for_good_is_no_start() -> None:
    run = clean()
    it_starts_again_once_its_server_has_refused_the_start(run)
    assert _broken(run) == set()


def test_a_second_effect_after_a_refused_start_is_one_too_many() -> None:
    run = clean()
    it_starts_again_once_its_server_has_refused_the_start(run)
    run.effects.append(run.effects[0])
    assert _broken(run) == {"I5"}
