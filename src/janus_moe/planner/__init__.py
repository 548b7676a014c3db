"""What a deployment costs and how large it should be. Pure: numpy, no torch.

latency     how long everything takes
search      which shape of the pools meets an objective
simulation  a service over time, with the policies that the live system has
"""
