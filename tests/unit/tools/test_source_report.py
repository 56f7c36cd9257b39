"""The metrics of sources: whether each can be reached, and how many tools it offers."""

from pathlib import Path

from tests.unit.telemetry.calls import Meters
from tests.unit.tools.servers import LocalServer
from turnkeeper.tools import catalogue, samples
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.servers import ToolServers
from turnkeeper.tools.source_report import SourceReport
from turnkeeper.tools.toolbox import Toolbox

TEXT = """
[[server]]
name = "time"
mcp = "stdio"
[[server]]
name = "git"
mcp = "stdio"
[[tool]]
tool = "*__n*"
"""


def test_each_source_is_reported_with_the_tools_that_it_offers() -> None:
    content, meters = catalogue.parse(Path("catalogue.toml"), TEXT.encode()), Meters()
    servers = ToolServers(content.servers, {"mcp": LocalServer})
    time, git = servers.sources
    assert isinstance(time, LocalServer)
    assert isinstance(git, LocalServer)
    toolbox = Toolbox([PythonTools([samples.add]), *servers.sources], catalogue=content)
    time.offer("now", "noon", "zone")
    git.problem = "nothing answers there"
    report = SourceReport(toolbox, servers, meters.metrics)
    report.report()
    up, tools = meters.points("turnkeeper.tool_source.up"), meters.points("turnkeeper.tool_source.tools")
    assert up == {(("source", "python"),): 1, (("source", "time"),): 1, (("source", "git"),): 0}
    assert tools == {(("source", "python"),): 1, (("source", "time"),): 2, (("source", "git"),): 0}
    git.problem = ""
    report.report()
    assert meters.points("turnkeeper.tool_source.up")[("source", "git"),] == 1
