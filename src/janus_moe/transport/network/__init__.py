"""Exchange among processes of several hosts: messages by exchange plans, over gloo.

A rank is here the global one, the position among all members with attention instances first; only
ports are asked for by the rank in a pool.
"""
