"""The parts of the script that trains the bundled model, and of the one that evaluates it."""
