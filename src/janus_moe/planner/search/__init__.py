"""How many instances of each pool a service needs, what that costs, and whether to have pools.

problem     what is asked
planner     `recommend`: search, monolithic candidate, verdict, or why nothing is possible
search      all shapes of two pools in arrays; `reference` is the obvious version
monolithic  expert parallelism without pools
activation  a_max for all pool sizes; `sampled` takes it from a trace
prefill     how prompts among decode steps lengthen the time per token
memory      who needs how much
baselines   other systems as planners; `paper` has the assumptions of one publication
ratio       the closed form r* as a cross-check
explain     where the time and the memory of a deployment go
pareto      throughput against speed
"""
