"""What the load generator is asked to do."""
