"""What the supervisor of an attempt is made of. Each part travels to it compiled, see `launcher`."""
