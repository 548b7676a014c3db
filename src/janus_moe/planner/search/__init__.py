"""How many instances of each pool a service needs, what that costs, and whether to have pools.

problem     what is asked
answers     a deployment, or why there is none with the nearest one that there is
recommend   search, monolithic candidate, verdict; or why nothing is possible
measured    the same for one machine that was measured
verdict     whether to have pools at all
search      all shapes of two pools in arrays; `reference` is the obvious version
grid        all pairs of pool sizes with all options; `coarse` and `feasible` leave out what loses
shapes      deployments as arrays: load, step time, memory
solve       the batches of deployments; `fixed_point` has Little's law
exchanges   the fastest exchange plan of many pairs of pool sizes
monolithic  expert parallelism without pools
activation  a_max for all pool sizes; `sampled` takes it from a trace
prefill     how prompts among decode steps lengthen the time per token
memory      who needs how much
baselines   other systems as planners; `paper` has the assumptions of one publication
ratio       the closed form r* as a cross-check
explain     where the time and the memory of a deployment go
pareto      throughput against speed
serve_settings  a deployment as settings of `janus serve`
"""
