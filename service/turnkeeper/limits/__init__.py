"""How many calls each principal and each tenant may make on this replica. Knows no gRPC."""
