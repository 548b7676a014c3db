"""One process of `janus profile exchange`: an `ExchangeOrder` in, a line of JSON out."""

from __future__ import annotations

import os
import sys

import msgspec

from janus_moe.errors import JanusError
from janus_moe.profiling.exchange import ExchangeOrder, take_part


def main() -> int:
    order = msgspec.json.decode(sys.argv[1], type=ExchangeOrder)
    try:
        times = take_part(order)
    except JanusError as error:
        print(f"{order.instance}: {error}", file=sys.stderr)
        return 1
    if times is not None:
        print(msgspec.json.encode(times).decode(), flush=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is closed; a thread of gloo that still waits would abort the process
