"""What is decided about a run before it starts, one subject a file.

Every decision is a pure function that returns (value, reason). reason: a sentence for people when
the settings left the value to "auto"; None when they gave it or nothing was to decide.

transport_choice.py   which transport, and how messages between hosts travel
thread_counts.py      which instances of a host compute at once, and with how many threads
expert_slots.py       replicas and spare slots
kv_cache_size.py      context length and KV blocks
memory_budget.py      what every host has left
memory_division.py    what that goes to: spare slots, then replicas, then KV caches
memory_check.py       whether weights, replicas and caches fit
"""
