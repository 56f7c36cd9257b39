"""The tool servers of `make chaos`: one over gRPC, one of MCP over HTTP, one of MCP over stdio at each replica."""
