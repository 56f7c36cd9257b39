"""Who calls: what a credential proves, and which principal, tenant, groups and roles belong to it. Knows no gRPC."""
