"""What the service is compared with: each one plain, idiomatic, and short enough to be read in a minute."""
