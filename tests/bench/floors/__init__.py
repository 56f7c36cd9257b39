"""The floors that the service is compared with: each one plain, idiomatic, and short."""
