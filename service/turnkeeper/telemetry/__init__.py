"""What the service says of itself: metrics, spans, logs. Nothing here decides anything."""
