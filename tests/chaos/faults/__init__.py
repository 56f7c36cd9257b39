"""The kinds of fault: what each does, how its effect is confirmed, and how it ends."""
