"""What a run must have kept, whatever died: each promise is a function that yields what broke it."""
