"""Exchange through memory that the instances of one host share.

`shared_memory` is an exchange of its own: one region and one control block for all instances.
`host_peers` carries messages between pairs of instances, beside a network.
Ranks are global ones here: positions among all members, attention instances first.
"""
