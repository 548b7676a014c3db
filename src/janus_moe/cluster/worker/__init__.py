"""The program of a worker process: `python -m janus_moe.cluster.worker`."""
