"""Where workers run: starting and ending their processes. Knows nothing of what they say."""
