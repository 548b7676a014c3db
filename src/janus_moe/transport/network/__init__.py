"""Exchange among processes of several hosts: messages by exchange plans, over gloo."""
