"""Tools of other processes: servers of turnkeeper.tools.v1.ToolService, reached over gRPC."""
