"""The kinds of fault: what each does, how it is seen to have taken effect, and how it ends."""
