"""`make chaos-approvals`: approvals raced by all who try to decide, while servers are killed."""
