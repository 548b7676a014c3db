"""OpenAI-compatible HTTP over an engine.

`run_server(HttpServer(backend, config))` serves until a signal;
`create_app(make_state(backend, config))` is the plain ASGI application.
What an engine must offer is `backend.EngineBackend`.
"""
