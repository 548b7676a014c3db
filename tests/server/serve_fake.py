"""A server process around the fake engine: `python -m tests.server.serve_fake FOLDER`.

Prints its URL once it is listening, and becomes ready when a line arrives on standard input.
"""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

from tests.server.fake_engine import FakeEngine
from tokenizers import Tokenizer as Core

from janus_moe.config import ServerConfig
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.server.run import HttpServer, run_server


async def main(folder: str) -> None:
    # As `load_tokenizer` would, without the seconds it takes to import transformers.
    core = Core.from_file(f"{folder}/tokenizer.json")
    tokenizer = Tokenizer(SimpleNamespace(backend_tokenizer=core, eos_token_id=1))
    engine = FakeEngine(tokenizer, token_delay_s=0.05, max_model_len=4096)
    engine.status = "loading"

    def become_ready() -> None:
        sys.stdin.readline()
        engine.status = "ready"

    asyncio.get_running_loop().add_reader(sys.stdin, become_ready)
    config = ServerConfig(port=0, shutdown_timeout=20)
    await run_server(HttpServer(engine, config), lambda server: print(server.url, flush=True))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
