"""The exchange as seen by one instance: who has announced, dispatched and replied, how to wait.

Knows nothing of how rows travel; `loopback`, `host_memory` and `network` bring that.
"""
