"""Decisions as pure, deterministic code: same input, same answer, on every machine.

paging      which KV block holds which tokens, and what a prompt can reuse (`prefix_tree`)
sequences   what is kept of a request on its attention instance, and one step's plan
batching    which tokens one attention instance computes in its next step
routing     which attention instance gets a request
activation  which replica computes an activated expert
placement   which expert instance holds which experts, by several methods and in the field's formats
statistics  which experts were active lately, and together
change      whether routing has changed, and since when
rebalancing  whether another placement is worth the move
exchange_choice  which exchange plan a batch gets
estimate    how many experts the busiest instance will read
routing_trace, replay, synthetic  recorded and invented routing, and what a policy makes of it
splitmix64  numbers that look random and are the same in every process

Nothing here knows of tensors, models, clocks or processes; of files it knows only routing traces
and the placement formats of other engines. numpy and numba are all it needs, so the simulator and
the live system run the same functions.
"""
