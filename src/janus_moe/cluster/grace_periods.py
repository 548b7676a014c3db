"""How long the parts of a service wait for each other when something ends; the one owner of it."""

from __future__ import annotations

STOP_GRACE_S = 3.0
"""What workers get to leave by themselves after a stop by request."""
FAILED_GRACE_S = 0.5
"""What workers get to leave by themselves after a failure."""
HOST_REPORT_S = 1.0
"""What other hosts get beyond the grace of their workers to say that these are gone."""
LAST_WORDS_S = 0.05
"""How long the words of a worker that has exited by itself may take to be read; they left first."""
PEER_EVENT_S = 1.0
"""How long a failure that a lost peer caused waits for what became of the peer, also on another
host. Only services that a loss ends wait for it."""
HOST_VERDICT_S = 10.0
"""How long the engine may take to end the service after it has heard of a failure on a host."""
