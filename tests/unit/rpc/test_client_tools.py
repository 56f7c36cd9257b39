"""The tools of one message together: what their check may cost."""

import json
import re
from itertools import count

from tests.cpu_time import least_cpu_seconds
from turnkeeper.domain.tool import ClientTool
from turnkeeper.rpc.client_tools import TOOLS_BYTES, problems

MOST_TOOLS = 32
"""Of one message: the rule of the field `client_tools`."""


def test_the_check_of_the_expressions_of_all_tools_takes_less_than_300_ms() -> None:
    numbers = count()

    def tools() -> list[ClientTool]:
        schemas = [
            json.dumps(
                {
                    "type": "object",
                    "properties": {str(next(numbers)): {"pattern": "a|" * 120 + str(next(numbers))} for _ in range(7)},
                }
            )
            for _ in range(MOST_TOOLS)
        ]
        assert TOOLS_BYTES * 0.9 < sum(map(len, schemas)) < TOOLS_BYTES
        return [
            ClientTool(name=str(number), description="", schema_json=schema) for number, schema in enumerate(schemas)
        ]

    tries = iter([tools() for _ in range(3)])

    def check() -> None:
        re.purge()
        assert problems(next(tries)) == {}

    assert least_cpu_seconds(check, tries=3) < 0.3
