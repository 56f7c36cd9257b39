"""Tools of MCP servers, over stdio and HTTP. Imported only where the catalogue has such a server.

No other room imports the SDK `mcp`, which comes with the extra `turnkeeper[mcp]`.
"""
