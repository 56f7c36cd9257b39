"""What the client's own tests are made with; not part of the distribution."""
